"""The parameter groups that an optimizer is given, which know the names and the roles of what is in them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from lightning_app.models.matrices import Role
from lightning_app.training import optim


class Groups(list[dict[str, Any]]):
    """Parameter groups. torch's optimizers take them as the list that they are; ours ask for more.

    Args:
        trained: name and parameter.
        matrices: names of those with weight decay.
        roles: by name.
        by_layer: those of each block apart.
        sharded: no process has whole parameters.
    """

    def __init__(
        self,
        trained: optim.Named,
        matrices: Collection[str],
        roles: Mapping[str, Role],
        *,
        by_layer: bool = False,
        sharded: bool = False,
    ):
        super().__init__(optim.parameter_groups(trained, matrices, by_layer=by_layer))
        self.trained, self.matrices, self.roles = trained, matrices, roles
        self.by_layer, self.sharded = by_layer, sharded

    def of(self, names: Collection[str]) -> Groups:
        """The groups of these parameters alone, by name."""
        trained = [(name, parameter) for name, parameter in self.trained if name in names]
        return Groups(trained, self.matrices, self.roles, by_layer=self.by_layer, sharded=self.sharded)
