// What a report does beyond being read: sort, filter, copy, save, switch between light and dark.
// The page is whole without it; every control is made or shown here.
'use strict';

const said = document.getElementById('said');
const say = text => { said.textContent = text; };

function makeButton(label, title, act) {
  const button = document.createElement('button');
  button.type = 'button';
  button.className = 'button small';
  button.textContent = label;
  button.title = title;
  button.addEventListener('click', () => act(button));
  return button;
}

// Theme ------------------------------------------------------------------------------------------

function setUpTheme() {
  const root = document.documentElement;
  const button = document.getElementById('theme');
  const system = matchMedia('(prefers-color-scheme: dark)');
  const isDark = () => (root.dataset.theme ? root.dataset.theme === 'dark' : system.matches);
  const show = () => {
    button.textContent = isDark() ? 'Light' : 'Dark';
    button.setAttribute('aria-label', `Switch to ${isDark() ? 'light' : 'dark'} colours`);
  };
  // A browser may forbid storage to a file; the choice then lasts as long as the page.
  try { root.dataset.theme = localStorage.getItem('forge-theme') || ''; } catch { /* see above */ }
  if (!['light', 'dark'].includes(root.dataset.theme)) delete root.dataset.theme;
  button.addEventListener('click', () => {
    root.dataset.theme = isDark() ? 'light' : 'dark';
    try { localStorage.setItem('forge-theme', root.dataset.theme); } catch { /* see above */ }
    show();
  });
  system.addEventListener('change', show);
  button.hidden = false;
  show();
}

// Tables -----------------------------------------------------------------------------------------

function cellKey(row, column) {
  const cell = row.cells[column];
  const raw = cell ? cell.dataset.value ?? cell.textContent.trim() : '';
  const value = raw === '' ? NaN : Number(raw);
  return { raw, value };
}

function sortBy(table, column, header) {
  const headers = [...table.tHead.rows[table.tHead.rows.length - 1].cells];
  const descending = header.getAttribute('aria-sort') === 'ascending' ||
    (header.getAttribute('aria-sort') === 'none' && header.dataset.first === 'descending');
  headers.forEach(other => {
    if (other.hasAttribute('aria-sort')) other.setAttribute('aria-sort', 'none');
  });
  header.setAttribute('aria-sort', descending ? 'descending' : 'ascending');
  const sign = descending ? -1 : 1;
  const keyed = [...table.tBodies[0].rows].map(row => ({ row, ...cellKey(row, column) }));
  const numeric = keyed.some(item => !Number.isNaN(item.value));
  keyed.sort((a, b) => {
    // Cells without a figure stay at the end either way.
    if (numeric) {
      const missing = Number.isNaN(a.value) - Number.isNaN(b.value);
      return missing || (Number.isNaN(a.value) ? 0 : sign * (a.value - b.value));
    }
    return sign * a.raw.localeCompare(b.raw, 'en', { numeric: true });
  });
  table.tBodies[0].append(...keyed.map(item => item.row));
  say(`Sorted by ${header.textContent}, ${descending ? 'descending' : 'ascending'}.`);
}

function setUpSorting(table) {
  const headers = table.tHead.rows[table.tHead.rows.length - 1].cells;
  [...headers].forEach((header, column) => {
    if (header.dataset.first === undefined) return;
    const button = document.createElement('button');
    button.type = 'button';
    button.className = 'sort';
    button.append(...header.childNodes);
    header.append(button);
    header.setAttribute('aria-sort', 'none');
    button.addEventListener('click', () => sortBy(table, column, header));
  });
}

function asCsv(table) {
  const field = cell => {
    const text = (cell.dataset.value ?? cell.textContent).replace(/\s+/g, ' ').trim();
    // A spreadsheet must not take a name for a formula.
    const safe = /^[=+@\t-]/.test(text) && Number.isNaN(Number(text)) ? `'${text}` : text;
    return /[",\n]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
  };
  return [...table.rows].map(row => [...row.cells].map(field).join(',')).join('\r\n') + '\r\n';
}

// Copying and saving -----------------------------------------------------------------------------

function save(name, type, text) {
  const link = document.createElement('a');
  link.href = URL.createObjectURL(new Blob([text], { type }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  say(`${name} saved.`);
}

async function copy(text, button) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    // A page that was opened from a file may not reach the clipboard in the new way.
    const area = document.createElement('textarea');
    area.value = text;
    area.className = 'unseen';
    document.body.append(area);
    area.select();
    document.execCommand('copy');
    area.remove();
    button.focus();
  }
  button.textContent = 'Copied';
  say('Copied.');
  setTimeout(() => { button.textContent = 'Copy'; }, 1500);
}

function setUpSaving() {
  document.querySelectorAll('[data-csv]').forEach(place => {
    const table = place.querySelector('table');
    const name = `${place.dataset.csv}.csv`;
    place.querySelector('.actions').append(
      makeButton('CSV', `Save this table as ${name}`, () =>
        save(name, 'text/csv', asCsv(table))));
  });
  document.querySelectorAll('figure[data-name]').forEach(figure => {
    const name = `${figure.dataset.name}.svg`;
    figure.querySelector('.actions').append(
      makeButton('SVG', `Save this chart as ${name}`, () =>
        save(name, 'image/svg+xml',
          new XMLSerializer().serializeToString(figure.querySelector('svg.chart:not(.narrow)')))));
  });
  document.querySelectorAll('.code').forEach(block => {
    const text = block.querySelector('pre').textContent;
    block.prepend(makeButton('Copy', 'Copy to the clipboard', button => copy(text, button)));
  });
}

// Changed answers --------------------------------------------------------------------------------

function setUpFilter(form) {
  const items = [...document.querySelectorAll('.item')];
  const count = form.querySelector('output');
  const apply = () => {
    const wanted = Object.fromEntries(new FormData(form));
    const words = wanted.words.trim().toLowerCase();
    let shown = 0;
    items.forEach(item => {
      const fits = ['pair', 'kind', 'task'].every(key =>
        !wanted[key] || item.dataset[key] === wanted[key]) &&
        (!words || item.textContent.toLowerCase().includes(words));
      item.hidden = !fits;
      shown += fits;
    });
    count.textContent = `${shown} of ${items.length} shown`;
    document.querySelectorAll('.items').forEach(list => {
      list.hidden = !list.querySelector('.item:not([hidden])');
    });
  };
  form.addEventListener('input', apply);
  form.addEventListener('submit', event => event.preventDefault());
  form.hidden = false;
  apply();
}

// Reading and printing ---------------------------------------------------------------------------

function setUpContents() {
  const links = new Map([...document.querySelectorAll('.contents a')].map(link =>
    [link.hash.slice(1), link]));
  const seen = new Set();
  const observer = new IntersectionObserver(entries => {
    entries.forEach(entry => {
      if (entry.isIntersecting) seen.add(entry.target.id); else seen.delete(entry.target.id);
    });
    const current = [...links.keys()].find(id => seen.has(id));
    if (current === undefined) return;
    links.forEach((link, id) => {
      if (id === current) {
        link.setAttribute('aria-current', 'true');
        // Along the narrow row of links, without moving the page.
        const row = link.closest('ol');
        if (row.scrollWidth > row.clientWidth) row.scrollLeft = link.offsetLeft - 24;
      }
      else link.removeAttribute('aria-current');
    });
  }, { rootMargin: '-15% 0px -60% 0px' });
  document.querySelectorAll('main section[id]').forEach(section => observer.observe(section));
}

function setUpPrinting() {
  let closed = [];
  addEventListener('beforeprint', () => {
    closed = [...document.querySelectorAll('details:not([open])')];
    closed.forEach(item => { item.open = true; });
  });
  addEventListener('afterprint', () => closed.forEach(item => { item.open = false; }));
}

// A link into something folded, such as a model's lineage, opens it.
function openTarget() {
  let place = location.hash ? document.getElementById(location.hash.slice(1)) : null;
  const target = place;
  for (; place; place = place.parentElement) if (place.tagName === 'DETAILS') place.open = true;
  if (target) target.scrollIntoView();
}

setUpTheme();
document.querySelectorAll('table.sortable').forEach(setUpSorting);
setUpSaving();
document.querySelectorAll('form.filter').forEach(setUpFilter);
setUpContents();
setUpPrinting();
addEventListener('hashchange', openTarget);
openTarget();
