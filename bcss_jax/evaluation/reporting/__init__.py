"""Writes an evaluation for people: report, tables, figures, gallery and model card."""
