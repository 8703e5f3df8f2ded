"""One search in one process: ours and the field's, with the same space, images, model and training.

`python -m benchmarks.searchers METHOD FOLDER` runs the search that FOLDER/task.json asks for, goes on with it if it was
begun there before, and writes FOLDER/found.json.
"""
