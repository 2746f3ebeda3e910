"""What a table counts rather than measures: floating-point operations of a method, rows of a data set."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from transfer_run.experiment.config.composed import Run


def operations(run: Run) -> Mapping[str, Any]:
    """Floating-point operations of one example at full length, a multiplication and an addition counted as two.

    `forward`; `training`: forward and backward; `fisher`: forward and a backward for each label. Matrix products and
    convolutions alone, as PyTorch's FlopCounterMode counts them; on tensors without values.
    """
    from torch.utils.flop_counter import FlopCounterMode

    from transfer_run.data.load import batch_spec
    from transfer_run.experiment.planning.plan import method_without_values

    config = run.config
    with method_without_values(run, batch_spec(config["dataset"], config["backbone"], 1)) as (method, batch):
        with FlopCounterMode(display=False) as forward:
            loss = method.loss(batch)
        with FlopCounterMode(display=False) as backward:
            loss.backward()
    there, back = forward.get_total_flops(), backward.get_total_flops()
    return {"forward": there, "training": there + back, "fisher": there + max(1, method.task.num_labels) * back}


def rows(run: Run) -> Mapping[str, Any]:
    """Rows of the data that `run` names: `all`, of each split, `learned` (all but the test's), `classes`, `of` each
    class; of texts also the `distinct` ones of each column, and those of all columns together (`distinct.texts`)."""
    from transfer_run.data.load import build_data

    config = run.config
    data = build_data(config["dataset"], config["backbone"], config["seed"])
    data.setup()
    names, total = data.task.label_names, sum(data.sizes.values())
    found = Counter(int(label) for split in data.sizes for label in data.labels(split))
    texts: dict[str, set[str]] = {}
    for encoder in getattr(data, "encoders", {}).values():
        for row in encoder.rows.rows:
            for column, text in row.items():
                texts.setdefault(column, set()).add(text)
                texts.setdefault("texts", set()).add(text)
    return {
        "all": total,
        **data.sizes,
        "learned": total - data.sizes.get("test", 0),
        "classes": data.task.num_labels,
        "of": {name: found[number] for number, name in enumerate(names)},
        "distinct": {column: len(values) for column, values in texts.items()},
    }
