# SPDX-License-Identifier: LGPL-2.1-or-later
"""docs/forms.md is what the goldens say."""

from __future__ import annotations

from tests.forms_table import FILE, FORMS, forms, table


def test_the_table_of_forms_is_up_to_date() -> None:
    assert FILE.read_text(encoding="utf-8") == table(), "python -m tests.forms_table writes it"


def test_every_form_of_the_goldens_is_in_it() -> None:
    assert set(forms()) <= set(FORMS)
