"""Words: vocabulary and caption metrics."""
