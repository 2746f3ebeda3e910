"""Code that a config names: only the package's, a few libraries' and that of folders the user names."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from torch.optim import Optimizer

from transfer_run import targets
from transfer_run.errors import UserError
from transfer_run.methods.base import Method
from transfer_run.targets import check_target, load_class, make_importable

TOY = "from transfer_run.methods.tuning.full import Full\n\n\nclass Toy(Full):\n    pass\n"


@pytest.fixture(autouse=True)
def nothing_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(targets, "_named", [])
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delenv("PYTHONPATH", raising=False)


@pytest.mark.parametrize(
    "target",
    ["os.system", "subprocess.run", "builtins.exec", "sys.exit", "posix.system", "pathlib.Path", "yaml.unsafe_load",
     "torch.load", "torch.hub.load", "numpy.load", "lightning.Trainer", "hydra.utils.call"],
)  # fmt: skip
def test_code_of_others_is_not_named(target: str) -> None:
    with pytest.raises(UserError, match="lies in no folder that you have named") as error:
        check_target(target, "method.about.target")
    assert error.value.where == "method.about.target"


@pytest.mark.parametrize(
    "target", ["", "os", ".Class", "a..b", "os.", "a b.C", "../evil.Class", "os.system()", "x-y.Z"]
)
def test_what_is_no_name_of_a_class(target: str) -> None:
    with pytest.raises(UserError, match=r"is no module\.Class"):
        check_target(target, "method.about.target")


def test_a_folder_must_be_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "toy_of_targets.py").write_text(TOY, encoding="utf-8")
    with pytest.raises(UserError, match="cannot be imported"):
        check_target("toy_of_targets.Toy", "here")
    monkeypatch.syspath_prepend(str(tmp_path))  # as the folder one happens to stand in
    with pytest.raises(UserError, match="lies in no folder"):
        check_target("toy_of_targets.Toy", "here")
    check_target("toy_of_targets.Toy", "here", [tmp_path])
    monkeypatch.setenv("PYTHONPATH", f"/nowhere:{tmp_path}")
    check_target("toy_of_targets.Toy", "here")
    monkeypatch.delenv("PYTHONPATH")
    make_importable([tmp_path])
    assert load_class("toy_of_targets.Toy", Method, "here", "method class").__name__ == "Toy"


def test_an_installed_package_is_named_by_a_folder_within_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "of_somebody"
    (package / "conf").mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "toy.py").write_text(TOY, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UserError, match="lies in no folder"):
        check_target("of_somebody.toy.Toy", "here")
    check_target("of_somebody.toy.Toy", "here", [package / "conf"])  # hydra.searchpath=[pkg://of_somebody.conf]


def test_a_file_that_is_called_as_an_installed_module_is_not_taken_for_it(tmp_path: Path) -> None:
    for name in ("json", "yaml"):
        (tmp_path / f"{name}.py").write_text(TOY, encoding="utf-8")
        with pytest.raises(UserError, match="lies in no folder"):  # the installed one would be imported
            check_target(f"{name}.Toy", "here", [tmp_path])


@pytest.mark.parametrize(
    ("target", "says", "near"),
    [
        ("transfer_run.methods.build.T", "has no optimizer 'T'", []),
        ("transfer_run.files.write_json", "has no optimizer 'write_json'", []),
        ("torch.optim.lr_scheduler.LambdaLR", "has no optimizer", []),
        ("torch.optim.Adamw", "has no optimizer 'Adamw'", ["Adam"]),
    ],
)
def test_what_is_found_must_be_of_the_kind_that_is_asked_for(target: str, says: str, near: list[str]) -> None:
    with pytest.raises(UserError, match=says) as error:
        load_class(target, Optimizer, "optimizer.about.target", "optimizer")
    assert error.value.nearest[: len(near)] == near
