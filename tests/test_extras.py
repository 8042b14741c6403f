"""What is not installed is named with the extra that brings it."""

import re
import sys

import pytest

from pyterrier_selfdistill.utils.checks import EXTRAS, load_extra


@pytest.mark.parametrize(("module", "extra"), EXTRAS.items())
def test_what_is_missing_is_named_with_its_extra(module, extra, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    advice = re.escape(f"this needs {module}, which is not installed: pip install 'pyterrier-selfdistill[{extra}]'")
    with pytest.raises(ImportError, match=advice):
        load_extra(module)
