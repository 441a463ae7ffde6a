"""Beam with a memory: for each step of each pipeline it parses its options anew and reads the signatures of
the same methods, and for a small pipeline that is more work than all else.
"""

import types
import weakref

import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.transforms import core, userstate


def remember(patch: pytest.MonkeyPatch) -> None:
    """Lets views of options, signatures of methods, and what state a class of DoFns has, be found out once;
    what they say stays the same.
    """
    view_as, get_signature, get_specs = PipelineOptions.view_as, core.get_signature, userstate.get_dofn_specs
    views: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()
    signatures: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()
    specs: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()

    def remembered_view(self, cls):
        made = views.setdefault(self, {})
        if cls not in made:
            made[cls] = view_as(self, cls)
        return made[cls]

    def remembered_signature(func):
        if not isinstance(func, types.MethodType) or not isinstance(func.__func__, types.FunctionType):
            return get_signature(func)
        if func.__func__ not in signatures:
            signatures[func.__func__] = get_signature(func)
        return signatures[func.__func__]

    def remembered_specs(dofn):
        if any(isinstance(value, types.MethodType) for value in vars(dofn).values()):
            return get_specs(dofn)  # its own methods are asked too
        if type(dofn) not in specs:
            specs[type(dofn)] = get_specs(dofn)
        return specs[type(dofn)]

    patch.setattr(PipelineOptions, "view_as", remembered_view)
    patch.setattr(core, "get_signature", remembered_signature)
    patch.setattr(userstate, "get_dofn_specs", remembered_specs)
