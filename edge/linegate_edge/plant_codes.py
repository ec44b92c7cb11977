"""The plant's own codes for defect classes.

Rules kept here: a code for a class that no package can find is a mistake of writing, and told before the first part; a class
without a code is none, for a plant need not have one for each. Where codes are put into is left to `message`.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping

from linegate.errors import SettingsError


def check_plant_codes(codes: Mapping[str, str], classes: Collection[str]) -> None:
    """Do nothing where each code, by defect class, is for one of the classes that the packages find.

    Raises:
        SettingsError: some are not; the text names them, and the nearest class there is.
    """
    unknown = [name for name in codes if name not in classes]
    if not unknown:
        return
    known = sorted(classes)
    nearest = difflib.get_close_matches(unknown[0], known, n=1, cutoff=0.5)
    hint = f"did you mean '{nearest[0]}'?" if nearest and len(unknown) == 1 else f"they find {', '.join(known)}"
    names = ", ".join(f"'{name}'" for name in unknown)
    raise SettingsError(f"[plant_codes]: no package finds the defect class {names}: {hint}")
