"""One file per model family: which matrices read and write the residual stream."""
