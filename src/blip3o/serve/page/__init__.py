"""The web page, in the server's process; needs the extra `page` (Gradio).

A tab makes the same requests as a program. They pass the same schemas and enter the same queue, so
the page can do nothing that the API does not allow.
"""
