"use strict";
// Sorting, filtering and the switch between raw and scaled values. Without this script every table is
// complete and readable.
(function () {
  const collator = new Intl.Collator("en", { numeric: true, sensitivity: "base" });

  function valueOf(row, column, table) {
    const cell = row.cells[column];
    if (!cell) return null;
    const scaled = table.classList.contains("show-scaled") && cell.dataset.scaled;
    const key = scaled !== undefined && scaled !== false && scaled !== "" ? scaled : cell.dataset.key;
    if (key !== undefined) return key === "" || Number.isNaN(Number(key)) ? null : Number(key);
    return cell.textContent.trim();
  }

  function sortBy(header, table) {
    const column = header.cellIndex;
    // Numbers start with the largest, names with A.
    const first = header.dataset.kind === "number" ? "descending" : "ascending";
    const now = header.getAttribute("aria-sort");
    const order = now === null ? first : now === "ascending" ? "descending" : "ascending";
    for (const other of header.parentElement.cells) other.removeAttribute("aria-sort");
    header.setAttribute("aria-sort", order);
    apply(table, column, order);
  }

  function apply(table, column, order) {
    const sign = order === "ascending" ? 1 : -1;
    const body = table.tBodies[0];
    const rows = Array.from(body.rows, (row, at) => ({ row, at, value: valueOf(row, column, table) }));
    rows.sort((a, b) => {
      // Missing values stay last whatever the direction; equal ones keep their order.
      if (a.value === null || b.value === null) return (a.value === null) - (b.value === null) || a.at - b.at;
      const by = typeof a.value === "number" && typeof b.value === "number"
        ? a.value - b.value
        : collator.compare(String(a.value), String(b.value));
      return sign * by || a.at - b.at;
    });
    for (const { row } of rows) body.append(row);
  }

  for (const table of document.querySelectorAll("table.sortable")) {
    for (const button of table.querySelectorAll("button.sort")) {
      button.addEventListener("click", () => sortBy(button.parentElement, table));
    }
  }

  for (const input of document.querySelectorAll("input.filter")) {
    const table = document.getElementById(input.getAttribute("aria-controls"));
    input.addEventListener("input", () => {
      const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
      for (const row of table.tBodies[0].rows) {
        const text = Array.from(row.cells).slice(0, 3).map((cell) => cell.textContent).join(" ").toLowerCase();
        row.hidden = !words.every((word) => text.includes(word));
      }
    });
  }

  for (const radio of document.querySelectorAll(".switch input")) {
    const table = document.getElementById(radio.name.replace(/^values-/, "scores-"));
    radio.addEventListener("change", () => {
      table.classList.toggle("show-scaled", radio.value === "scaled");
      table.classList.toggle("show-raw", radio.value === "raw");
      const sorted = table.querySelector("th[aria-sort]");
      if (sorted) apply(table, sorted.cellIndex, sorted.getAttribute("aria-sort"));
    });
  }

  addEventListener("beforeprint", () => {
    for (const details of document.querySelectorAll("details:not([open])")) {
      details.open = true;
      details.dataset.opened = "";
    }
  });
  addEventListener("afterprint", () => {
    for (const details of document.querySelectorAll("details[data-opened]")) {
      details.open = false;
      delete details.dataset.opened;
    }
  });
  // A link to something inside closed details opens it.
  function reveal() {
    const target = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (target && target.tagName === "DETAILS") target.open = true;
  }
  addEventListener("hashchange", reveal);
  reveal();
})();
