"""How opaque bytes travel between ranks. Nothing here knows what a frame is.

A transport has ``rank`` and ``size``, and ``allgather(words, name, bound)``: it starts gathering each rank's int64
words, at most ``bound`` (the same on all ranks), and returns something to ``wait()`` for: the words of all ranks, in
rank order.
"""
