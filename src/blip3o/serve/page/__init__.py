"""The web page, in the server's own process; needs the extra `page` (Gradio).

A tab makes the same requests as a program, checked by the same schemas, and hands them to the same
queue: the page can do nothing that the API does not allow.
"""
