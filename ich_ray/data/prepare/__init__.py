"""DICOM files and a label table to a prepared dataset."""
