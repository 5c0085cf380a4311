"""Builds the `Settings` from flags, environment, config file and defaults, in that order of precedence.

A key that no option has is refused in every layer, `TELLTALE_*` variables included: a misspelt option that is
silently ignored is a server that runs with another configuration than its owner believes. Errors name the option as
the user wrote it (`--grpc-port`, `TELLTALE_GRPC_PORT`, `grpc_port in telltale.yaml`), what was wanted and what was
got, one line per fault.
"""

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from service.config import Settings
from service.errors import ConfigError
from service.options import ENV_PREFIX, env_name, flag_name, is_secret, is_switch

CONFIG_VARIABLE = f"{ENV_PREFIX}CONFIG"
CLIENT_VARIABLES = (f"{ENV_PREFIX}TARGET", f"{ENV_PREFIX}API_KEY", f"{ENV_PREFIX}TLS_CA")
"""Read by the client commands; the server must not stumble over them."""

# Kubernetes describes every Service of the namespace in variables. Those of a Service called telltale, or
# telltale-something, begin with our prefix and are nobody's mistake; one called telltale-grpc even makes a GRPC_PORT.
_SERVICE_LINK = re.compile(r"(.*_)?(SERVICE_HOST|SERVICE_PORT(_.*)?|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)")
_SERVICE_LINK_URL = re.compile(r"(tcp|udp|sctp)://")


@dataclass(frozen=True, slots=True)
class Given:
    """A value that somebody set."""

    value: Any
    origin: str
    """How to call the option in a message to whoever set it."""


Layer = dict[str, Given]


def load_settings(flags: Mapping[str, Any], environ: Mapping[str, str]) -> Settings:
    """The settings for these flags and this environment; see `read_layers` and `settings_of`."""
    return settings_of(read_layers(flags, environ))


def read_layers(flags: Mapping[str, Any], environ: Mapping[str, str]) -> Layer:
    """What was set, by flag, variable or file, and where: the winner for each option. Values are not checked yet.

    Args:
        flags: option name -> value, as parsed from the command line; None means not given. `config` is the path of
            the config file.
        environ: the process's environment. Empty variables count as unset.

    Raises:
        ConfigError: unknown key, unreadable config file.
    """
    flags = {name: value for name, value in flags.items() if value is not None}
    config_file = flags.pop("config", None) or environ.get(CONFIG_VARIABLE)
    file_layer = _file_layer(Path(config_file)) if config_file else {}
    return file_layer | _env_layer(environ) | _flag_layer(flags)


def settings_of(given: Layer) -> Settings:
    """The settings, defaults filled in.

    Raises:
        ConfigError: value out of bounds, options that clash.
    """
    try:
        return Settings.model_validate({name: entry.value for name, entry in given.items()})
    except ValidationError as error:
        raise ConfigError("\n".join(_line(detail, given) for detail in error.errors())) from None


def print_config(settings: Settings, given: Layer) -> str:
    """The settings as a config file, each line with its origin. Secrets show as asterisks."""
    lines = []
    # `mode="json"` is what masks a SecretStr.
    for name, value in settings.model_dump(mode="json").items():
        line = yaml.safe_dump({name: value}, width=10**6, allow_unicode=True).rstrip("\n")
        lines.append(f"{line}  # {given[name].origin if name in given else 'default'}")
    return "\n".join(lines) + "\n"


def _flag_layer(flags: Mapping[str, Any]) -> Layer:
    _refuse_unknown(flags, {name: flag_name(name) for name in Settings.model_fields}, spell=flag_name)
    return {name: Given(value, flag_name(name, value=value)) for name, value in flags.items()}


def _env_layer(environ: Mapping[str, str]) -> Layer:
    set_variables = {
        variable: value
        for variable, value in environ.items()
        if variable.startswith(ENV_PREFIX) and value and not _is_service_link(variable, value)
    }
    names = {env_name(name): name for name in Settings.model_fields}
    _refuse_unknown(set_variables, {v: v for v in (*names, CONFIG_VARIABLE, *CLIENT_VARIABLES)}, spell=str)
    return {names[variable]: Given(value, variable) for variable, value in set_variables.items() if variable in names}


def _file_layer(path: Path) -> Layer:
    values = _read_yaml(path)
    _refuse_unknown(values, {n: n for n in Settings.model_fields}, spell=lambda key: f"{key} in {path}")
    for name, value in values.items():
        # pydantic would take `slots: yes` for 1.
        if isinstance(value, bool) and not is_switch(name):
            raise ConfigError(f"{name} in {path}: must not be true or false. Got {str(value).lower()}.")
    return {name: Given(value, f"{name} in {path}") for name, value in values.items()}


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), Loader=_UniqueKeyLoader)
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise ConfigError(f"config file {path} can't be read: {reason}.") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"config file {path} is not valid YAML: {' '.join(str(error).split())}.") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"config file {path} must be a mapping of options. Got a {type(values).__name__}.")
    return {str(key): value for key, value in values.items()}


class _UniqueKeyLoader(yaml.SafeLoader):
    """A SafeLoader that refuses a key given twice; YAML says they are errors, PyYAML takes the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        repeated = {str(key) for key in keys if keys.count(key) > 1}
        if repeated:
            raise yaml.constructor.ConstructorError(
                None, None, f"given twice: {', '.join(sorted(repeated))}", node.start_mark
            )
        return super().construct_mapping(node, deep)


def _refuse_unknown(given: Iterable[str], known: Mapping[str, str], *, spell: Any) -> None:
    unknown = [key for key in given if key not in known]
    lines = [f"{spell(key)}: unknown option.{_suggestion(key, known)}" for key in unknown]
    if lines:
        raise ConfigError("\n".join(lines))


def _suggestion(key: str, known: Mapping[str, str]) -> str:
    close = difflib.get_close_matches(key, known, n=1)
    return f" Did you mean {known[close[0]]}?" if close else ""


def _is_service_link(variable: str, value: str) -> bool:
    name = variable.removeprefix(ENV_PREFIX)
    return bool(_SERVICE_LINK.fullmatch(name) or (name.endswith("PORT") and _SERVICE_LINK_URL.match(value)))


def _line(detail: ErrorDetails, given: Layer) -> str:
    """One fault in one line; clashes between options name them already."""
    message = detail["msg"].removeprefix("Value error, ")
    if not detail["loc"]:
        return message
    entry = given[str(detail["loc"][0])]
    wanted = re.sub(r"^(Input|String|Value) should", "must", message).partition(", unable")[0]
    # A URL with a user may hold a password, wherever it was put.
    is_hidden = is_secret(str(detail["loc"][0])) or re.search(r"://[^/]*@", str(entry.value))
    got = "another value" if is_hidden else repr(entry.value)
    return f"{entry.origin}: {wanted}. Got {got}."
