"""A layout as a world's directory keeps it, for the host process that comes next.

It is written once, when the world is made: what the host looks like later does not matter.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from substrate_services.journal import bytesjson
from substrate_services.journal.jsontypes import Fields, JsonObject, compact_bytes
from substrate_services.journal.parts import byte_items, byte_list, opt_bytes
from substrate_services.world.layers import Layer
from substrate_services.world.layout import Layout
from substrate_services.world.profile import Mask
from substrate_services.world.project import project_from_json, project_to_json

_FILE = "layout.json"
_VERSION = 1


def save_layout(directory: Path, layout: Layout) -> None:
    """Write the layout. Its mounts are not kept: they are made once."""
    (directory / _FILE).write_bytes(compact_bytes(_to_json(layout)) + b"\n")


def load_layout(directory: Path) -> Layout:
    """Read the layout. Raises FileNotFoundError, or LineError where it is damaged."""
    fields = Fields(json.loads((directory / _FILE).read_bytes()), _FILE)
    if fields.integer("v") != _VERSION:
        raise fields.wrong("v", str(_VERSION))
    return Layout(
        layers=tuple(
            _layer(Fields(item, "layer"), directory / "layers") for item in fields.items("layers")
        ),
        mounts=(),
        masks=tuple(_mask(Fields(item, "mask")) for item in fields.items("masks")),
        home=opt_bytes(fields, "home") or b"/",
        covers=byte_items(fields, "covers"),
        shown=byte_items(fields, "shown"),
        project=project_from_json(fields, "project"),
    )


def _to_json(layout: Layout) -> JsonObject:
    return {
        "v": _VERSION,
        "layers": [
            {
                "layer_id": layer.layer_id,
                "mount_point": bytesjson.encode(layer.mount_point),
                "lowers": byte_list(layer.lowers),
                "user_xattrs": layer.user_xattrs,
            }
            for layer in layout.layers
        ],
        "masks": [
            {
                "path": bytesjson.encode(mask.path),
                "is_dir": mask.is_dir,
                "rule": mask.rule,
                "fix": mask.fix,
            }
            for mask in layout.masks
        ],
        "home": bytesjson.encode(layout.home),
        "covers": byte_list(layout.covers),
        "shown": byte_list(layout.shown),
        "project": project_to_json(layout.project),
    }


def _layer(fields: Fields, layers: Path) -> Layer:
    layer_id = fields.text("layer_id")
    return Layer(
        layer_id=layer_id,
        mount_point=opt_bytes(fields, "mount_point") or b"/",
        lowers=byte_items(fields, "lowers"),
        directory=layers / os.path.basename(layer_id),
        user_xattrs=fields.flag("user_xattrs"),
    )


def _mask(fields: Fields) -> Mask:
    return Mask(
        path=opt_bytes(fields, "path") or b"/",
        is_dir=fields.flag("is_dir"),
        rule=fields.text("rule"),
        fix=fields.text("fix"),
    )
