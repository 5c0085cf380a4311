"""What lasts is kept from the collector, and a server's start is."""

import gc
import sys
import types

import pytest

from service import cli
from service.lasting import lasting


@pytest.fixture(autouse=True)
def thaw():
    yield
    gc.unfreeze()
    gc.enable()


def test_nothing_is_collected_meanwhile_nor_looked_at_afterwards():
    gc.unfreeze()
    with lasting():
        assert not gc.isenabled()
        made = [[] for _ in range(1000)]
    assert gc.isenabled()
    assert gc.get_freeze_count() > 1000
    later = []
    assert any(each is later for each in gc.get_objects())
    assert not any(each is made[0] for each in gc.get_objects())


def test_an_error_ends_it_too():
    with pytest.raises(KeyError), lasting():
        raise KeyError
    assert gc.isenabled()


def test_where_nothing_was_collected_nothing_is_after_it():
    gc.disable()
    with lasting():
        pass
    assert not gc.isenabled()


def test_the_libraries_are_imported_without_collecting(monkeypatch):
    """They are most of a start."""
    seen = []

    class Finder:
        @staticmethod
        def find_spec(name, *_):
            if name == "service.run_server":
                seen.append(gc.isenabled())
                raise ImportError("not in this test")

    monkeypatch.delitem(sys.modules, "service.run_server", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Finder, *sys.meta_path])
    with pytest.raises(ImportError, match="not in this test"):
        cli.main(["serve", "--grpc-port", "0"])
    assert seen == [False]


def test_parts_are_put_together_without_collecting(monkeypatch):
    from service import run_server

    seen = []

    def assemble(*_, **__):
        seen.append(gc.isenabled())
        raise OSError("far enough")

    monkeypatch.setattr(run_server, "assemble", assemble)
    monkeypatch.setattr(run_server, "set_up_logging", lambda _settings: None)
    monkeypatch.setattr(run_server, "JournalKeeper", types.SimpleNamespace(open=lambda _settings: None))
    assert cli.main(["serve", "--grpc-port", "0", "--http-port", "0"]) == cli.EXIT_FAILED
    assert seen == [False] and gc.isenabled()
