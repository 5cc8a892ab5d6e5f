"""Classes of the two-integer advisory locks; migration 0001 uses the same numbers."""

from __future__ import annotations

DOORBELL = 1751
NODE = 1753
MIGRATION = 1755
