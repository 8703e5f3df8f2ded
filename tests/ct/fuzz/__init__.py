"""Changed files of every transfer syntax, read by us, by pydicom and by GDCM."""
