"""Options: their four layers, what is refused and in which words, and the page that lists them."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from service.config import Settings, is_loopback
from service.config_layers import load_settings, print_config, read_layers, settings_of
from service.errors import ConfigError
from service.journal_place import default_place, places
from service.options import describe, with_table

DOCS_PAGE = Path(__file__).parent.parent / "docs" / "configuration.md"


def refusal(flags: dict | None = None, environ: dict | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        load_settings(flags or {}, environ or {})
    return str(caught.value)


@pytest.fixture
def config_file(tmp_path):
    path = tmp_path / "telltale.yaml"

    def write(text: str) -> str:
        path.write_text(text, encoding="utf-8")
        return str(path)

    return write


# Precedence


def test_defaults_stand_where_nothing_is_given():
    settings = load_settings({}, {})
    assert settings == Settings()
    assert (settings.host, settings.grpc_port, settings.http_port) == ("127.0.0.1", 50051, 9464)


def test_each_layer_overrides_the_one_below(config_file):
    path = config_file("slots: 1\nthreads: 1\nlog_level: error\n")
    environ = {"TELLTALE_CONFIG": path, "TELLTALE_THREADS": "2", "TELLTALE_LOG_LEVEL": "warning"}
    given = read_layers({"log_level": "debug", "slots": None}, environ)
    settings = settings_of(given)
    assert (settings.slots, settings.threads, settings.log_level) == (1, 2, "debug")
    assert {name: entry.origin for name, entry in given.items()} == {
        "slots": f"slots in {path}",
        "threads": "TELLTALE_THREADS",
        "log_level": "--log-level",
    }


def test_the_config_flag_overrides_its_variable(config_file, tmp_path):
    other = tmp_path / "other.yaml"
    other.write_text("slots: 7\n")
    environ = {"TELLTALE_CONFIG": config_file("slots: 1\n")}
    assert load_settings({"config": str(other)}, environ).slots == 7


def test_every_option_can_be_set_in_every_layer(config_file, tmp_path):
    some_file = tmp_path / "file"
    some_file.touch()
    values = {option.key: option.default for option in describe()}
    values |= {"model_sha256": "a" * 64, "cache_dir": str(tmp_path), "sae": str(tmp_path)}
    values |= {"monitor_packs": str(tmp_path), "hook_point": "layers.15.output"}
    values |= {"monitor_packs": str(tmp_path), "journal": str(tmp_path / "alerts.sqlite")}
    values |= {"journal_forward": "postgresql://somebody@somewhere/alerts"}
    values |= dict.fromkeys(
        ("features_file", "catalogue_file", "tls_certificate", "tls_key", "api_keys_file"), str(some_file)
    )
    from_file = load_settings(
        {"config": config_file("".join(f"{key}: {value}\n" for key, value in values.items()))}, {}
    )
    from_env = load_settings({}, {option.env: values[option.key] for option in describe()})
    from_flags = load_settings(values, {})
    assert from_file == from_env == from_flags
    assert from_flags.tls_key == some_file


@pytest.mark.parametrize(
    ("name", "value"), [("journal_forward", "mysql://ann:secret@db/x"), ("journal", "postgresql://ann:secret@db/x")]
)
def test_no_password_is_shown(name, value):
    assert "secret" not in refusal({name: value}) and "Got another value." in refusal({name: value})
    given = read_layers({"journal_forward": "postgresql://ann:secret@db/x"}, {})
    assert "secret" not in print_config(settings_of(given), given) + repr(settings_of(given))


def test_no_journal_and_a_copy_of_it_clash():
    message = "journal_forward needs a journal: what is sent is sent from there. Got journal none."
    assert message in refusal({"journal": "none", "journal_forward": "postgresql://somebody@db/x"})


def test_a_journal_is_named_after_the_port_that_one_server_has(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert places(Settings()) == [tmp_path / "telltale" / "alerts-50051.sqlite"] == [default_place()]
    assert places(Settings(grpc_port=7)) == [tmp_path / "telltale" / "alerts-7.sqlite"]
    assert places(Settings(grpc_port=0))[:2] == [
        tmp_path / "telltale" / "alerts-any.sqlite",
        tmp_path / "telltale" / "alerts-any-2.sqlite",
    ]
    assert places(Settings(journal="x.sqlite")) == [Path("x.sqlite")]
    assert places(Settings(journal="none")) == []
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_place() == tmp_path / ".local" / "state" / "telltale" / "alerts-50051.sqlite"


def test_settings_read_no_environment_by_themselves(monkeypatch):
    monkeypatch.setenv("TELLTALE_SLOTS", "9")
    assert Settings().slots == 0


def test_an_empty_variable_counts_as_unset():
    assert load_settings({}, {"TELLTALE_SLOTS": ""}).slots == 0


def test_a_switch_can_be_turned_off_by_a_flag():
    assert load_settings({"reflection": False}, {"TELLTALE_REFLECTION": "true"}).reflection is False


def test_home_is_expanded_where_no_shell_does(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "sae").mkdir()
    settings = load_settings({}, {"TELLTALE_SAE": "~/sae", "TELLTALE_CACHE_DIR": "~/cache"})
    assert settings.sae == str(tmp_path / "sae")
    assert settings.cache_dir == tmp_path / "cache"


# Unknown keys


def test_an_unknown_variable_is_refused_by_name():
    assert refusal(environ={"TELLTALE_GRCP_PORT": "1"}) == (
        "TELLTALE_GRCP_PORT: unknown option. Did you mean TELLTALE_GRPC_PORT?"
    )


def test_an_unknown_key_of_the_file_is_refused_by_name(config_file):
    path = config_file("grpc-port: 1\n")
    assert refusal({"config": path}) == f"grpc-port in {path}: unknown option. Did you mean grpc_port?"


def test_an_unknown_flag_is_refused_by_name():
    assert refusal({"slot": 1}).startswith("--slot: unknown option.")


def test_variables_of_the_client_and_other_programs_are_left_alone():
    others = {"TELLTALE_TARGET": "x:1", "TELLTALE_API_KEY": "k", "TELLTALE_TLS_CA": "f", "PATH": "/bin"}
    assert load_settings({}, others) == load_settings({}, {})


def test_what_kubernetes_injects_for_a_service_called_telltale_is_no_mistake():
    environ = {
        "TELLTALE_SERVICE_HOST": "10.0.0.1",
        "TELLTALE_SERVICE_PORT": "50051",
        "TELLTALE_SERVICE_PORT_GRPC": "50051",
        "TELLTALE_PORT": "tcp://10.0.0.1:50051",
        "TELLTALE_PORT_50051_TCP_ADDR": "10.0.0.1",
        "TELLTALE_METRICS_SERVICE_HOST": "10.0.0.2",
        "TELLTALE_GRPC_PORT": "tcp://10.0.0.3:50051",  # of a service called telltale-grpc
    }
    assert load_settings({}, environ) == Settings()


# Values


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"grpc_port": "70000"}, "--grpc-port: must be less than or equal to 65535. Got '70000'."),
        ({"slots": "many"}, "--slots: must be a valid integer. Got 'many'."),
        ({"slots": "-1"}, "--slots: must be greater than or equal to 0. Got '-1'."),
        ({"memory_fraction": "0"}, "--memory-fraction: must be greater than 0. Got '0'."),
        ({"max_request_seconds": "inf"}, "--max-request-seconds: must be a finite number. Got 'inf'."),
        ({"journal_max_days": "1e6"}, "--journal-max-days: must be less than or equal to 36500. Got '1e6'."),
        ({"top_features_cap": "65"}, "--top-features-cap: must be less than or equal to 64. Got '65'."),
        ({"quantization": "int4"}, "--quantization: must be 'auto', 'none', 'nf4' or 'int8'. Got 'int4'."),
        ({"device": "gpu"}, "--device: must be auto, cpu, cuda or cuda:N. Got 'gpu'."),
        ({"model_sha256": "abc"}, "--model-sha256: must be 64 lower-case hexadecimal digits. Got 'abc'."),
        ({"sae": "nowhere"}, "--sae: must be 'embedded', 'none' or an existing folder. Got 'nowhere'."),
        ({"sae": "none", "features_file": __file__}, "features_file needs a dictionary. Got sae none."),
        (
            {"hook_point": "15"},
            "--hook-point: must look like 'layers.15.output' or 'blocks.15.hook_resid_post'. Got '15'.",
        ),
        ({"features_file": "/no/such"}, "--features-file: must be an existing file. Got '/no/such'."),
        ({"monitor_packs": "/no/such"}, "--monitor-packs: must be an existing folder. Got '/no/such'."),
        (
            {"journal": "sqlite:///x"},
            "--journal: must be a path, or none; journal_forward takes a database. Got 'sqlite:///x'.",
        ),
        (
            {"host": "http://x"},
            "--host: must be a host name or an IP address, without brackets, port or scheme. Got 'http://x'.",
        ),
    ],
)
def test_a_bad_value_is_refused_with_wanted_and_got(flags, message):
    assert refusal(flags) == message


def test_every_fault_is_listed_under_the_name_its_layer_uses(config_file):
    path = config_file("slots: few\n")
    lines = refusal({"config": path, "grpc_port": "x"}, {"TELLTALE_THREADS": "y"}).splitlines()
    assert sorted(line.partition(":")[0] for line in lines) == ["--grpc-port", "TELLTALE_THREADS", f"slots in {path}"]


def test_true_is_not_a_number(config_file):
    path = config_file("slots: yes\n")
    assert refusal({"config": path}) == f"slots in {path}: must not be true or false. Got true."


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("- slots\n", "must be a mapping of options. Got a list."),
        ("slots: [1\n", "is not valid YAML"),
        ("slots: 1\nslots: 2\n", "given twice: slots"),
        ("slots: !!python/object/apply:os.getcwd []\n", "is not valid YAML"),
    ],
)
def test_a_file_that_is_no_mapping_of_options_is_refused(config_file, text, part):
    assert part in refusal({"config": config_file(text)})


def test_a_missing_config_file_is_an_error():
    assert refusal({"config": "/no/such.yaml"}) == (
        "config file /no/such.yaml can't be read: No such file or directory."
    )


def test_an_empty_config_file_sets_nothing(config_file):
    assert load_settings({"config": config_file("# nothing\n")}, {}) == Settings()


# Combinations


@pytest.mark.parametrize(("given", "missing"), [("tls_certificate", "tls_key"), ("tls_key", "tls_certificate")])
def test_half_of_tls_names_both_options(given, missing):
    assert refusal({given: __file__}) == f"{given} needs {missing}: set both or neither."


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.2", "example.org"])
def test_an_open_address_needs_tls_or_consent(host):
    assert "set tls_certificate and tls_key, or insecure to allow it." in refusal({"host": host})
    assert Settings(host=host, insecure=True).host == host
    assert Settings(host=host, tls_certificate=__file__, tls_key=__file__).uses_tls


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_loopback_needs_neither(host):
    assert is_loopback(host)
    assert not Settings(host=host).uses_tls


def test_the_two_ports_must_differ_unless_any_will_do():
    assert refusal({"grpc_port": 9464}) == "grpc_port and http_port must differ. Got 9464 for both."
    assert Settings(grpc_port=0, http_port=0).grpc_port == 0


def test_settings_never_change():
    with pytest.raises(ValidationError, match="frozen"):
        Settings().slots = 3


# What is printed


def test_the_printed_config_is_a_config_file_with_origins(config_file):
    given = read_layers({"grpc_port": "0"}, {"TELLTALE_SLOTS": "3"})
    text = print_config(settings_of(given), given)
    assert "grpc_port: 0  # --grpc-port\n" in text
    assert "slots: 3  # TELLTALE_SLOTS\n" in text
    assert "host: 127.0.0.1  # default\n" in text
    assert load_settings({"config": config_file(text)}, {}) == settings_of(given)


def test_the_printed_config_holds_no_secret(tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("very-secret\n")
    given = read_layers({"api_keys_file": str(keys)}, {"TELLTALE_API_KEY": "secret-too"})
    text = print_config(settings_of(given), given)
    assert str(keys) in text
    assert "secret" not in text.replace(str(keys), "")


def test_every_option_is_described():
    options = describe()
    assert [option.key for option in options] == list(Settings.model_fields)
    assert all(option.description.endswith(".") for option in options)
    assert {"--no-reflection", "--insecure", "--grpc-port"} <= {option.flag for option in options}


def test_the_docs_page_lists_every_option_as_it_is_now():
    page = DOCS_PAGE.read_text(encoding="utf-8")
    assert with_table(page) == page, "run `python -m service.options docs/configuration.md`"
    assert all(f"`{option.env}`" in page for option in describe())


def test_a_page_without_markers_is_refused():
    with pytest.raises(ValueError, match="must hold the lines"):
        with_table("# Configuration\n")
