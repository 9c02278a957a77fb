"""Reading and writing of images: photographs, LMDBs, contact sheets and animations."""
