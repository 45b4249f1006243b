"""Validation of Minari data sets: every check that a set's form allows, whoever wrote it."""

from om2p_data.validation.findings import Finding, Severity
from om2p_data.validation.run import LEFTOVERS, stored_ids, validate

__all__ = ["LEFTOVERS", "Finding", "Severity", "stored_ids", "validate"]
