// What scrolls sideways takes the focus, so that the arrow keys move it.
const scrolling = new ResizeObserver((entries) => {
  for (const { target } of entries) target.tabIndex = target.scrollWidth > target.clientWidth ? 0 : -1;
});
document.querySelectorAll("article figure, article table.dataframe, article div.math").forEach((e) => scrolling.observe(e));

// docutils names the entries of the bibliography by a role that a list does not admit.
document.querySelectorAll("[role=doc-biblioentry]").forEach((e) => e.setAttribute("role", "listitem"));
