"""``cohortseg info``."""

from typing import Annotated, Any

import typer

from cohortseg.cli.console import results
from cohortseg.cli.options import Address


def info(
    *,
    address: Address = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Show versions, devices, the Ray cluster if there is one, and the model inside the package with its terms.

    Example: [bold]cohortseg info[/bold]
    """
    import json

    import torch

    from cohortseg.cluster import cluster_address, connected, local_resources
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
            "ray_address": cluster_address(address),
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
    try:
        if cluster_address(address) is not None:
            with connected(address) as cluster:
                nodes = [f"{cpus:g} CPUs, {gpus:g} GPUs" for cpus, gpus in cluster.nodes]
                facts["cluster"] = {"cpus": cluster.num_cpus, "gpus": cluster.num_gpus, "nodes": nodes}
    finally:  # what is wrong with the cluster is said below the rest
        if as_json:
            results.print(json.dumps(facts, indent=2), markup=False, soft_wrap=True)
        else:
            _print_tables(facts)


def _print_tables(facts: dict[str, dict[str, Any]]) -> None:
    from rich.markup import escape
    from rich.table import Table

    for title, rows in facts.items():
        table = Table(title=title, title_justify="left", show_header=False, box=None)
        table.add_column(no_wrap=True)
        table.add_column(overflow="fold")
        for name, value in rows.items():
            table.add_row(name, escape(str(value)))
        results.print(table)
