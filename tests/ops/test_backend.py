import pytest
import torch

from sparse3d.ops import backend, native, native_build


def test_forced_wins_over_the_environment(monkeypatch):
    monkeypatch.setenv("SPARSE3D_BACKEND", "native")
    with backend.forced("reference"):
        assert backend.backend(torch.zeros(1)) == "reference"
    assert backend.backend(torch.zeros(1)) == "native"


def test_an_unknown_name_is_refused(monkeypatch):
    monkeypatch.setenv("SPARSE3D_BACKEND", "gpu")
    with pytest.raises(ValueError, match="gpu"):
        backend.backend(torch.zeros(1))


def test_without_library_the_definition_runs(monkeypatch):
    monkeypatch.delenv("SPARSE3D_BACKEND", raising=False)
    monkeypatch.setattr(native, "available", lambda: False)
    assert backend.backend(torch.zeros(1)) == "reference"


def test_no_compiler_is_one_clear_error(monkeypatch, tmp_path):
    monkeypatch.setattr(native_build, "compiler", lambda: None)
    with pytest.raises(RuntimeError, match="install g"):
        native_build.build(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_broken_compiler_leaves_nothing_and_prints_its_words(monkeypatch, tmp_path):
    monkeypatch.setenv("SPARSE3D_CXXFLAGS", "--no-such-flag")
    if native_build.compiler() is None:
        pytest.skip("no compiler here")
    with pytest.raises(RuntimeError, match="no-such-flag"):
        native_build.build(tmp_path)
    assert not list(tmp_path.iterdir())
