"""docs/datasets-reading.md is true: every example in it runs."""

import importlib.util
import re
from pathlib import Path

import pytest

from pipelines.errors import NotInstalled
from pipelines.settings import Settings
from tests.datasets.trees import published, request, tree, write

TEXT = (Path(__file__).parents[2] / "docs/datasets-reading.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
HAS_TORCH = importlib.util.find_spec("torch") is not None


def test_there_are_five_and_none_is_missed() -> None:
    assert len(EXAMPLES) == 5 == TEXT.count("```") / 2


@pytest.mark.parametrize("number", range(5))
def test_an_example_runs_as_it_stands_there(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    if "torch" in EXAMPLES[number] and not HAS_TORCH:
        pytest.skip("needs torch")
    published(settings, request(write(tmp_path / "source", tree(80))))
    monkeypatch.setenv("FLEETMARK_HOME", str(settings.home))
    monkeypatch.chdir(tmp_path)
    exec(compile(EXAMPLES[number], f"example {number}", "exec"), {})  # noqa: S102
    if "download" in EXAMPLES[number]:
        assert (tmp_path / "photos-shards/photos-000000.tar").exists()
        assert (tmp_path / "photos-files/0/00000.jpg").read_bytes() == tree(80)["0/00000.jpg"]


@pytest.mark.skipif(HAS_TORCH, reason="torch is here")
def test_without_torch_the_dataset_says_what_to_install() -> None:
    with pytest.raises(NotInstalled, match=r"fleetmark\[torch\]"):
        importlib.import_module("pipelines.datasets.torch")
