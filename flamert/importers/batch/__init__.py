"""Making a frozen batch free. The walk is in lifting.py; what is known of the ops in compute, along, layout and sizes."""

from flamert.importers.batch.lifting import free

__all__ = ["free"]
