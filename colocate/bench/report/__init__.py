"""Reports from results: one model, three renderers.

collect     folders to runs, points and arms
curves      attainment against rate of each arm, and two arms against each other
verdict     who wins, and whether dynamic partitioning pays; headline puts it into two sentences
sections/   everything below the first screen
comparison  A against B
build       all of it into a ReportModel
html, markdown, write (JSON)  the model as a file
charts/     the model's charts as inline SVG
picture     one of them as a file of its own, for a README
"""
