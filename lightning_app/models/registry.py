"""Descriptions: from a part of a model to plain types that rebuild it in its real shape, and back.

{"part": "PretrainedLM", "version": 1, "options": {...}, "layout": {"heads": {...}}}

A part is named by its class, not by its file, so that files may move. A class of somebody else's is named by where it
is imported from. Options may hold further descriptions. `layout` says what was cut out of a backbone; whole ones have
none. So weights always fit what was built.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch.distributed.fsdp import FSDPModule

from lightning_app.errors import InputError
from lightning_app.models.backbone import Backbone
from lightning_app.plugins import IDEAS

PACKAGE = "lightning_app."
CORE = {
    "Decoder": "lightning_app.models.decoder:Decoder",
    "PretrainedLM": "lightning_app.models.pretrained:PretrainedLM",
    "ArticleGPT": "lightning_app.training.compositions:ArticleGPT",
    "CausalLM": "lightning_app.training.compositions:CausalLM",
}
PLACES = CORE | {name: place for idea in IDEAS for name, place in idea.parts.items()}
IDEA_OF = {name: idea for idea in IDEAS for name in idea.parts}
Description = dict[str, Any]


def describe(part: Any) -> Description:
    """What rebuilds a part that has a `config()`, in plain types."""
    description = {"part": name_of(part), "version": _version(type(part)), "options": part.config()}
    layouts = layouts_of(part) if isinstance(part, Backbone) else {}
    return description | ({"layout": layouts} if layouts else {})


def name_of(part: object) -> str:
    """The registered name of its class; of a class that has none, where it is imported from."""
    path = class_path(part)
    name = path.rpartition(".")[2]
    return name if PLACES.get(name, "").replace(":", ".") == path else path


def class_path(part: object) -> str:
    """Where the class of an object is imported from; sharding puts a class of its own before it."""
    cls = next(c for c in type(part).__mro__ if not issubclass(c, FSDPModule))
    return f"{cls.__module__}.{cls.__qualname__}"


def layouts_of(backbone: Backbone) -> dict[str, Any]:
    """What was cut out of a backbone or is masked, by kind."""
    return {kind: units.layout() for kind, units in backbone.units.items() if not units.is_whole}


def build(described: Any, find: Callable[[str], Any] | None = None, shape: Callable[..., None] | None = None) -> Any:
    """The part that a description describes, in its shape and with new weights; what is none stays as it is.

    Args:
        find: from a name to its class; None: those that are registered.
        shape: brings a backbone into its layouts; None: that of the table of ideas.

    Raises:
        InputError: a class that cannot be imported here, or a description of a newer version.
    """
    if isinstance(described, list):
        return [build(one, find, shape) for one in described]
    if not is_description(described):
        return described
    cls = (find or find_class)(described["part"])
    if described["version"] > _version(cls):
        raise InputError(
            f"{described['part']} was described in version {described['version']}, and is known here in version "
            f"{_version(cls)}: update this project"
        )
    part = cls(**{name: build(value, find, shape) for name, value in described["options"].items()})
    if "layout" in described:
        (shape or _shape())(part, described["layout"])
    return part


def is_description(value: Any) -> bool:
    return isinstance(value, Mapping) and {"part", "version", "options"} <= value.keys()


def find_class(name: str) -> Any:
    """The class of this name.

    Raises:
        InputError: there is none here.
    """
    if name in IDEA_OF:
        return IDEA_OF[name].load(PLACES[name])
    module, _, attribute = PLACES.get(name, name).replace(":", ".").rpartition(".")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(f"there is no {name} here: {error}") from error


def take_layouts(backbone: Backbone, layouts: Mapping[str, Any]) -> None:
    """Bring a model that is there into a shape; the values of what joins are to be loaded afterwards.

    Raises:
        InputError: they are those of a model of another shape.
    """
    if layouts:
        _shape()(backbone, layouts)


def follow_shape(copy: Backbone, original: Backbone) -> None:
    """Cut out of a copy what is missing in the model that it was made from, and bring back what came back there."""
    if original.core.units:
        (idea,) = (idea for idea in IDEAS if idea.follow)
        idea.load(str(idea.follow))(copy, original)


def _shape() -> Callable[..., None]:
    (idea,) = (idea for idea in IDEAS if idea.shape)
    shape: Callable[..., None] = idea.load(str(idea.shape))
    return shape


def innermost_backbone(described: Any) -> Description:
    """The description of it within another one; empty where there is none."""
    *_, innermost = {}, *_backbones(described)
    return innermost


def layouts_in(described: Any) -> dict[str, Any]:
    """The layouts of the innermost backbone of a description."""
    return dict(innermost_backbone(described).get("layout", {}))


def set_layouts(described: Description, layouts: dict[str, Any]) -> None:
    """Give the innermost backbone of a description another shape."""
    innermost_backbone(described)["layout"] = layouts


def differing(ours: Description, theirs: Description) -> Iterator[tuple[str, Any, Any]]:
    """Options in which two innermost backbones differ, though their tensors may have the same names and shapes."""
    found = [list(_backbones(one)) for one in (ours, theirs)]
    if not all(found) or found[0][-1]["part"] != found[1][-1]["part"]:
        return
    cls = find_class(found[0][-1]["part"])
    own, others = (cls.decisive(one[-1]["options"]) for one in found)
    yield from ((name, own[name], others[name]) for name in own if name in others and own[name] != others[name])


def _backbones(described: Any) -> Iterator[Description]:
    """The backbones within a description, from the outside to the inside."""
    while is_description(described):
        described = described["options"].get("backbone")
        if is_description(described):
            yield described


def as_config(described: Any) -> Any:
    """A description as YAML has it, without the layout; anything else stays as it is."""
    if isinstance(described, list):
        return [as_config(one) for one in described]
    if not is_description(described):
        return described
    options = {name: as_config(value) for name, value in described["options"].items()}
    return {"class_path": described["part"], "init_args": options}


def from_former(value: Any) -> Any:
    """A description in which classes were named by their files, in today's form; all else as it is."""
    if isinstance(value, list):
        return [from_former(one) for one in value]
    if isinstance(value, Mapping) and value.keys() == {"class_path", "init_args"}:
        options = {name: from_former(one) for name, one in value["init_args"].items()}
        return {"part": former_name(value["class_path"]), "version": 1, "options": options}
    return value


def former_name(path: str) -> str:
    """The name of a class of this project by the file in which it once stood; another's stays as it is."""
    return path.rpartition(".")[2] if path.startswith(PACKAGE) else path


def _version(cls: type) -> int:
    """The version of what `config` gives; it is raised where older options mean something else."""
    return getattr(cls, "description_version", 1)
