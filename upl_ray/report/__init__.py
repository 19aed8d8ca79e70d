"""The report of a finished run: one page, made from the run's storage alone, without Ray, torch or a model.

finished.py     which steps, classes and images a finished run has: `run.json`, opened
findings.py     the conclusions: accuracies, agreements, intervals, the verdict in words
figures.py      how a figure is drawn: style, one function for each kind of chart, SVG and PNG
exhibits.py     which figures the page has, each with its caption and table
thumbnails.py   pictures of images, several in one file
cards.py        the selected images of each class
export.py       files for other programs: tables, TensorBoard
labels.py       labels of the whole corpus in the forms that other tools read
tracking.py     the run in MLflow or Weights & Biases
page.py         the page: `write_report`; text and layout are in `templates/`
compare.py      a page that compares several runs
"""
