"""The Python API, by what one has in hand: a run (`runs`), a file of rollouts (`files`), a stream of batches (`detection`). Use it as `import klaxon`."""
