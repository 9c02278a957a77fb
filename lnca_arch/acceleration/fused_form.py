"""Fused forms of the rules: the same updates from fewer and larger matrix products."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor

if TYPE_CHECKING:
    from lnca_arch.acceleration.persistent_kernel import PersistentKernel
    from lnca_arch.automata.cellular_automaton import CellularAutomaton


class FusedForm(NamedTuple):
    """How to compute a rule's updates fast.

    Attributes:
        update: a function ``(cells, params, *per_cell)`` that returns what the rule's ``_update`` returns.
        fuse_params: a function from the rule to ``params``: its parameters, with consecutive linear maps merged.
        activations_per_cell: approximate number of values that a step saves per cell for the backward pass.
        kernel: the rule's kernel for whole rollouts on CUDA, if there is one.
    """

    update: Callable[..., Tensor]
    fuse_params: Callable[[Any], Any]
    activations_per_cell: int
    kernel: 'PersistentKernel | None' = None


def _update(cells: Tensor, rule: 'CellularAutomaton', *per_cell: Tensor) -> Tensor:
    return rule._update(cells, *per_cell)


#: For rules without a fused form: their own ``_update``, uncompiled.
UNFUSED = FusedForm(_update, lambda rule: rule, activations_per_cell=2000)

_forms: dict[type, Callable[[Any], FusedForm]] = {}


def register_fused_form(rule_type: type, form_of: Callable[[Any], FusedForm]) -> None:
    """Register the fused form of a rule.

    Args:
        rule_type: class of the rule. Its subclasses, which may compute something else, do not share the form.
        form_of: a function from the rule to its form.
    """
    _forms[rule_type] = form_of


def fused_form(rule: 'CellularAutomaton') -> FusedForm:
    """Return the fused form of a rule, or :data:`UNFUSED`."""
    form_of = _forms.get(type(rule))
    return form_of(rule) if form_of else UNFUSED
