"""Imports flow downward, and each library has its place."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("sae_runtime", "monitors", "service", "discovery")
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts): path
    for package in PACKAGES
    for path in sorted((ROOT / package).glob("*.py"))
    if path.name != "__init__.py"
}


def imports(path: Path) -> set[str]:
    """Full names of everything a module imports, wherever in it: `from a import b` is a and a.b."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module is not None
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


IMPORTS = {name: imports(path) for name, path in MODULES.items()}


def tops(module: str) -> set[str]:
    """Top-level packages it imports; `google.protobuf` and `google.rpc` are two."""
    names = IMPORTS[module]
    return {".".join(name.split(".")[: 2 if name.startswith("google.") else 1]) for name in names if name != "google"}


def importers(*packages: str) -> set[str]:
    return {module for module in MODULES if tops(module) & set(packages)}


def test_every_package_is_there():
    assert {module.split(".")[0] for module in MODULES} == set(PACKAGES)


@pytest.mark.parametrize(
    ("package", "never"),
    [
        ("sae_runtime", {"service", "monitors", "discovery"}),
        ("monitors", {"service", "sae_runtime", "discovery", "torch", "grpc", "prometheus_client", "numpy"}),
        ("service", {"discovery"}),
        ("discovery", {"service"}),
    ],
)
def test_packages_import_downward_only(package, never):
    wrong = {module: tops(module) & never for module in MODULES if module.startswith(f"{package}.")}
    assert {module: names for module, names in wrong.items() if names} == {}


GRPC = ("grpc", "grpc_health", "grpc_reflection", "grpc_status", "google.rpc", "telltale")
GRPC_PLACES = (
    "rpc",
    "servicer",
    "server",
    "grpc_server",
    "client",
    "client_",
    "cli_inspect",
    "cli_monitors",
    "wire_",
    "feature_servicer",
    "alert_servicer",
    "server_alerts",
)


def is_among(module: str, places: tuple[str, ...]) -> bool:
    """Whether it is one of `service.<place>`; a place that ends in _ stands for all that begin so."""
    name = module.removeprefix("service.")
    return module.startswith("service.") and any(
        name.startswith(place) if place.endswith("_") else name == place for place in places
    )


def test_grpc_and_stubs_stay_at_the_edge():
    # Offline one module may call a running server, as any client of somebody else's would: by the stubs alone; and one
    # reads steering in the API's own form.
    offline = {module for module in importers(*GRPC) if not is_among(module, GRPC_PLACES)}
    assert offline == {"discovery.grpc_endpoint", "discovery.steering_json"}
    assert tops("discovery.grpc_endpoint") & set(GRPC) == {"grpc", "telltale"}
    # The names above mean something.
    assert all(any(is_among(module, (place,)) for module in importers(*GRPC)) for place in GRPC_PLACES)


def test_prometheus_stays_in_the_metrics_and_where_they_are_served():
    places = {f"service.{name}" for name in ("metrics", "feature_metrics", "guard_metrics", "journal_metrics")}
    places |= {"service.server", "service.http"}
    places |= {"discovery.train_logs"}  # long runs are watched as the server is
    assert importers("prometheus_client") == places


def test_ray_stays_where_searches_are_run():
    """It takes seconds to import, and everything else must work where it is not installed."""
    assert importers("ray") == {"discovery.tune_ray", "discovery.tune_scheduler"}
    at_once = {module for module, path in MODULES.items() if imports_at_once(path) & importers("ray")}
    assert at_once == {"discovery.tune_ray"}


def test_databases_stay_in_the_journal():
    places = ("monitors.journal", "monitors.forwarder")
    found = importers("sqlalchemy", "alembic", "psycopg")
    assert "monitors.journal_tables" in found
    assert {module for module in found if not module.startswith(places)} == set()
    # What an alert is, and whether a chain holds, can be known without one.
    for module in ("monitors.alert_record", "monitors.journal_entry", "monitors.journal_chain", "monitors.text_key"):
        assert module in MODULES and not needed_at_once(module) & found


def needed_at_once(*modules: str) -> set[str]:
    """These modules and all of ours that importing them imports."""
    needed: set[str] = set()
    todo = list(modules)
    while todo:
        module = todo.pop()
        if module not in needed:
            needed.add(module)
            todo += [name for name in imports_at_once(MODULES[module]) if name in MODULES]
    return needed


def test_files_of_a_dictionarys_folder_are_named_in_one_place():
    names = {"features.json", "catalogue.sqlite", "examples.sqlite", "sae.json"}
    found = {name: [module for module, path in MODULES.items() if name in assigned(path)] for name in names}
    assert {name: modules for name, modules in found.items() if len(modules) != 1} == {}


def assigned(path: Path) -> set[object]:
    """Values of the constants that a module defines."""
    body = ast.parse(path.read_text()).body
    return {node.value.value for node in body if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)}


def test_the_client_and_the_command_line_need_no_torch():
    """At import: `telltale generate` starts in a moment, and on machines without it."""
    needed = needed_at_once("service.cli", "service.client")
    libraries = {"torch", "transformers", "numpy", "sqlalchemy"}
    heavy = {module: imports_at_once(MODULES[module]) & libraries for module in needed}
    assert {module: names for module, names in heavy.items() if names} == {}


def imports_at_once(path: Path) -> set[str]:
    """What importing a module imports: not what stands in functions."""
    module = ast.parse(path.read_text())
    module.body = [node for node in module.body if isinstance(node, ast.Import | ast.ImportFrom)]
    found = set()
    for node in module.body:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        else:
            found |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def test_there_is_no_import_cycle():
    edges = {module: {name for name in names if name in MODULES} for module, names in IMPORTS.items()}
    assert sum(map(len, edges.values())) > 50
    done: set[str] = set()

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, " -> ".join((*trail, module))
        if module not in done:
            for other in sorted(edges[module]):
                visit(other, (*trail, module))
            done.add(module)

    for module in edges:
        visit(module, ())
