"""Our backbones as parts of other libraries, a file for each; a library is imported only with its file."""
