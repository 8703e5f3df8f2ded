"""One file, one image: DICOM, windows, the phantom. No notion of a data set."""
