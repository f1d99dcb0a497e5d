"""``cohortseg info``."""

from typing import Annotated, Any

import typer

from cohortseg.cli.console import out


def info(
    *,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Show versions, devices, and the model inside the package with its terms.

    Example: [bold]cohortseg info[/bold]
    """
    import json

    import torch
    from rich.markup import escape
    from rich.table import Table

    from cohortseg.cluster import cluster_address, local_resources
    from cohortseg.models.device import find_device, has_fast_bf16
    from cohortseg.store.provenance import versions
    from cohortseg.weights import load_model

    model = load_model(device=torch.device("cpu"))
    device, resources = find_device(), local_resources()
    facts: dict[str, dict[str, Any]] = {
        "versions": dict(versions()),
        "device": {
            "name": torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
            "bf16_in_hardware": has_fast_bf16(device),
            "cpus": resources.num_cpus,
            "gpus": resources.num_gpus,
            "ray_address": cluster_address(None),
        },
        "model": {
            "name": model.name,
            "sha256": model.sha256,
            "input": f"{model.card.canonical.size} x {model.card.canonical.size}, HU {model.card.canonical.window_hu}",
            "images_at_hand_in_training": len(model.training_images),
            "licence": model.card.licence,
            "versions": dict(model.card.versions),
        },
    }
    if as_json:
        out.print(json.dumps(facts, indent=2), markup=False, soft_wrap=True)
        return
    for title, rows in facts.items():
        table = Table(title=title, title_justify="left", show_header=False, box=None)
        table.add_column(no_wrap=True)
        table.add_column(overflow="fold")
        for name, value in rows.items():
            table.add_row(name, escape(str(value)))
        out.print(table)
