"""Reads DICOM slides that OpenSlide refuses, and finds the files of a slide in a folder of instances."""
