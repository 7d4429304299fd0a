"""What an evaluation writes for people: report, tables, figures, gallery, model card."""
