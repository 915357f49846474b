"""What tests of pages share: a page taken apart, names that try to break it, facts of a run."""

from html.parser import HTMLParser

EVIL = ("<script>alert(1)</script>", 'a "quoted" & b', "x' onerror='y", "犬\n\x00\udce9")
FACTS = {
    "data": "photos (folder): 4 classes",
    "model": "swin_nano",
    "parameters": 2_600_000,
    "seconds": 155,
    "steps": 1900,
    "epochs": 100,
    "stopped_by": "max_minutes",
    "skipped_images": 3,
    "peak_memory_gib": 1.23456,
    "device": "cuda:0",
}
VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """A page taken apart: tags must nest, and what is in them is collected."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.attributes, self.texts = [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)
