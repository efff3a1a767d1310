package plans

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strconv"
	"unicode"
	"unicode/utf8"

	configpb "github.com/writ-mesh/writ/proto/writ/config/v1"
)

// Bounds of a table.
const (
	// DefaultMaxCallers and MaxCallers are how many callers a table has at most.
	DefaultMaxCallers = 2_000_000
	MaxCallers        = 5_000_000
	// maxCaller is the longest name of a caller in bytes: more than a SPIFFE ID has with
	// its namespace and account.
	maxCaller = 512
	// maxLine is the longest line in bytes; a name may be written three times as long.
	maxLine = 4096
	// maxNames bounds the names of all callers together in bytes, which is what a table
	// takes in memory beside some 20 bytes for each.
	maxNames = 256 << 20
	// maxPlans and maxColumns bound what a table is made of beside its callers.
	maxPlans   = 1000
	maxColumns = 8
	// maxProblems are told of one table.
	maxProblems = 5
	// maxSharedRows is until how many different numbers of their own callers share them.
	maxSharedRows = 1 << 16
)

// The words that lines begin with.
const (
	wordNumbers = "numbers"
	wordPlan    = "plan"
	wordDefault = "default"
	wordCaller  = "caller"
	wordRefuse  = "refuse"
)

// builder makes a table of lines.
type builder struct {
	// form is that of the names of columns and plans. A plan's begins with a letter, since
	// what begins with a digit is a number.
	form   *regexp.Regexp
	table  *Table
	max    int
	rows   map[[maxColumns]Number]entry // own rows that callers share
	fields [][]byte                     // of the line at hand
	about  string                       // the word that it begins with, if it has any
	name   []byte                       // of the caller at hand
	// again lets a caller be said twice: the later one holds.
	again bool
	told  int // callers that Redis told, the same ones too
}

func newBuilder(maxCallers int) *builder {
	return &builder{
		form: regexp.MustCompile(configpb.PlanName), max: maxCallers, rows: map[[maxColumns]Number]entry{},
		table: &Table{byName: map[string]entry{}, fallback: nobody, base: newIndex()},
	}
}

// LineError is what is wrong with a line of a table; 0 is the table as a whole.
type LineError struct {
	File string
	Line int
	Err  error
}

// Error implements error.
func (e *LineError) Error() string {
	if e.Line == 0 {
		return e.File + ": " + e.Err.Error()
	}
	return e.File + ":" + strconv.Itoa(e.Line) + ": " + e.Err.Error()
}

// Unwrap gives what is wrong.
func (e *LineError) Unwrap() error { return e.Err }

// parse reads a table with at most so many callers. The error names the lines that
// are wrong, five at most, after name; there is no table then.
func parse(r io.Reader, name string, maxCallers int) (*Table, error) {
	s, err := parseSource(r, name, maxCallers, 0)
	if err != nil {
		return nil, err
	}
	return s.table, nil
}

// parseSource is parse, of so many bytes if that is known, and notes what is to be known
// to read the file again.
func parseSource(r io.Reader, name string, maxCallers int, size int64) (*source, error) {
	b := newBuilder(maxCallers)
	in, notes := newLines(r), newRemember(b.table.base)
	var problems []error
	for len(problems) < maxProblems {
		line, err := in.next()
		if err != nil {
			problems = append(problems, &LineError{name, in.n, err})
			break
		}
		if len(line) == 0 {
			break
		}
		notes.before(line)
		if err := b.line(line); err != nil {
			problems = append(problems, &LineError{name, in.n, err})
			if errors.Is(err, errTooMany) {
				break
			}
		}
		notes.after(line, b.about != wordCaller && b.about != "")
		b.expect(in.read, size)
	}
	t, err := b.finish(name, problems)
	if err != nil {
		return nil, err
	}
	return notes.finish(t), nil
}

// expect makes room once some callers are read for those that will come: as many as the
// others are in as many bytes.
func (b *builder) expect(read, size int64) {
	const some = 4096
	if base := b.table.base; base.len() == some && cap(base.entries) < 4*some && size > 2*read {
		callers := int(min(some*size/read, int64(b.max)))
		base.reserve(callers+callers/64, min(maxNames, len(base.text)/some*callers))
	}
}

// textLines reads lines.
type textLines struct {
	in   *bufio.Reader
	n    int   // lines so far, the one at hand included
	read int64 // bytes so far
}

func newLines(r io.Reader) *textLines {
	return &textLines{in: bufio.NewReaderSize(r, max(maxLine, 64<<10))}
}

// next gives the next line with its end, nothing behind the last one. After an error
// there are no more.
func (l *textLines) next() ([]byte, error) {
	line, err := l.in.ReadSlice('\n')
	if len(line) == 0 && errors.Is(err, io.EOF) {
		return nil, nil
	}
	l.n++
	l.read += int64(len(line))
	switch {
	case len(line) > maxLine:
		return nil, fmt.Errorf("the line has more than %d bytes", maxLine)
	case err == nil:
		return line, nil
	case errors.Is(err, io.EOF):
		return nil, errors.New("the last line has no end: was the table written whole?")
	}
	return nil, err
}

func (b *builder) finish(name string, problems []error) (*Table, error) {
	if len(b.table.columns) == 0 && len(problems) == 0 {
		problems = append(problems, &LineError{name, 0, fmt.Errorf("a table begins with its columns: %s requests", wordNumbers)})
	}
	if len(problems) > 0 {
		return nil, errors.Join(problems...)
	}
	b.table.base.clip()
	b.table.own = clipped(b.table.own)
	b.table.callers = b.table.base.len()
	return b.table, nil
}

var errTooMany = errors.New("too many callers")

// line takes a line of a file.
func (b *builder) line(line []byte) error {
	b.about = ""
	if !utf8.Valid(line) {
		return errors.New("this is not UTF-8")
	}
	b.fields = split(b.fields[:0], line)
	if len(b.fields) == 0 {
		return nil
	}
	word, rest := b.fields[0], b.fields[1:]
	if b.about = known(word); len(b.table.columns) == 0 && b.about != wordNumbers {
		return fmt.Errorf("a table begins with its columns: %s requests", wordNumbers)
	}
	switch b.about {
	case wordCaller:
		if len(rest) == 0 {
			return errors.New("want caller, its name, and its plan or numbers")
		}
		name, err := b.callerName(rest[0])
		if err != nil {
			return err
		}
		return b.caller(name, rest[1:])
	case wordNumbers:
		return b.columns(rest)
	case wordPlan:
		return b.plan(rest)
	case wordDefault:
		return b.fallback(rest)
	}
	return fmt.Errorf("a line begins with %s, %s, %s or %s, not with %s", wordNumbers, wordPlan, wordDefault, wordCaller, quoted(b.fields[0]))
}

// known is the word that a line may begin with, "?" for another one.
func known(word []byte) string {
	for _, w := range [...]string{wordCaller, wordNumbers, wordPlan, wordDefault} {
		if string(word) == w {
			return w
		}
	}
	return "?"
}

// split cuts a line into words, without its comment.
func split(to [][]byte, line []byte) [][]byte {
	begin := -1 // of the word at hand
	for i, c := range line {
		switch space := c == ' ' || c == '\t' || c == '\r' || c == '\n'; {
		case space && begin >= 0:
			to, begin = append(to, line[begin:i]), -1
		case !space && begin < 0 && c == '#':
			return to
		case !space && begin < 0:
			begin = i
		}
	}
	if begin >= 0 {
		to = append(to, line[begin:])
	}
	return to
}

// quoted is a word for an error.
func quoted(word []byte) string {
	const most = 40
	if len(word) > most {
		return strconv.QuoteToASCII(string(word[:most])) + "..."
	}
	return strconv.QuoteToASCII(string(word))
}

func (b *builder) columns(words [][]byte) error {
	switch {
	case len(b.table.columns) > 0:
		return fmt.Errorf("a table has one line %s", wordNumbers)
	case len(words) == 0 || len(words) > maxColumns:
		return fmt.Errorf("a table has 1 to %d columns", maxColumns)
	}
	var columns []string
	for _, w := range words {
		if !b.form.Match(w) {
			return fmt.Errorf("%s is no name of a column: write small letters, digits and dashes", quoted(w))
		}
		if slices.Contains(columns, string(w)) {
			return fmt.Errorf("the column %s is there twice", w)
		}
		columns = append(columns, string(w))
	}
	b.table.columns = columns
	return nil
}

func (b *builder) plan(words [][]byte) error {
	if len(words) == 0 {
		return errors.New("want plan, its name and its numbers")
	}
	name, t := string(words[0]), b.table
	switch {
	case !b.form.MatchString(name) || name[0] <= '9' || name == wordRefuse:
		return fmt.Errorf("%s is no name of a plan: write small letters, digits and dashes, beginning with a letter", quoted(words[0]))
	case len(t.plans) >= maxPlans:
		return fmt.Errorf("a table has at most %d plans", maxPlans)
	}
	if _, twice := t.byName[name]; twice {
		return fmt.Errorf("the plan %s is there twice", name)
	}
	row, err := b.row(words[1:])
	if err != nil {
		return err
	}
	t.byName[name] = entry(len(t.plans)) //nolint:gosec // at most maxPlans
	t.plans = append(t.plans, name)
	t.planned = append(t.planned, row[:len(t.columns)]...)
	return nil
}

func (b *builder) fallback(words [][]byte) error {
	switch {
	case len(words) != 1:
		return fmt.Errorf("want %s and a plan, or %s %s", wordDefault, wordDefault, wordRefuse)
	case b.table.fallback != nobody:
		return fmt.Errorf("a table has one line %s", wordDefault)
	case string(words[0]) == wordRefuse:
		b.table.fallback = refused
		return nil
	}
	e, ok := b.table.byName[string(words[0])]
	if !ok {
		return fmt.Errorf("there is no plan %s above", quoted(words[0]))
	}
	b.table.fallback = e
	return nil
}

// callerName reads the name of a caller, in which %20 stands for a space and so on.
func (b *builder) callerName(word []byte) ([]byte, error) {
	if bytes.IndexByte(word, '%') < 0 {
		return word, checkCaller(word)
	}
	b.name = b.name[:0]
	for i := 0; i < len(word); i++ {
		if word[i] != '%' {
			b.name = append(b.name, word[i])
			continue
		}
		if i+2 >= len(word) {
			return nil, fmt.Errorf("%s: a %% in a caller's name is written %%25", quoted(word))
		}
		c, err := strconv.ParseUint(string(word[i+1:i+3]), 16, 8)
		if err != nil {
			return nil, fmt.Errorf("%s: a %% in a caller's name is written %%25", quoted(word))
		}
		b.name = append(b.name, byte(c))
		i += 2
	}
	return b.name, checkCaller(b.name)
}

// checkCaller refuses names that no request has.
func checkCaller(name []byte) error {
	switch {
	case len(name) == 0:
		return errors.New("a caller has a name")
	case len(name) > maxCaller:
		return fmt.Errorf("%s: a caller's name has at most %d bytes", quoted(name), maxCaller)
	case plain(name): // nearly all are
		return nil
	case !utf8.Valid(name):
		return fmt.Errorf("%s: the name is not UTF-8", quoted(name))
	case bytes.ContainsFunc(name, unicode.IsControl):
		return fmt.Errorf("%s: the name has a control character", quoted(name))
	}
	return nil
}

// plain says that a name has nothing but printable ASCII characters.
func plain(name []byte) bool {
	for _, c := range name {
		if c < ' ' || c > '~' {
			return false
		}
	}
	return true
}

// caller takes a caller with what stands behind its name.
func (b *builder) caller(name []byte, words [][]byte) error {
	e, err := b.entryOf(words)
	if err != nil {
		return err
	}
	return b.put(name, e)
}

// put takes a caller with what it has.
func (b *builder) put(name []byte, e entry) error {
	if b.table.base.put(name, e) && !b.again {
		return fmt.Errorf("the caller %s is there twice", quoted(name))
	}
	switch {
	case b.table.base.len() > b.max:
		return fmt.Errorf("%w: a table has at most %d (plans.max_callers)", errTooMany, b.max)
	case len(b.table.base.text) > maxNames:
		return fmt.Errorf("%w: their names together have more than %d MiB", errTooMany, maxNames>>20)
	}
	return nil
}

// entryOf is what a caller has: the name of a plan, or numbers.
func (b *builder) entryOf(words [][]byte) (entry, error) {
	if len(words) == 1 && words[0][0] > '9' {
		e, ok := b.table.byName[string(words[0])]
		if !ok {
			return 0, fmt.Errorf("there is no plan %s above", quoted(words[0]))
		}
		return e, nil
	}
	row, err := b.row(words)
	if err != nil {
		return 0, err
	}
	return b.own(row), nil
}

// own is the entry of numbers that are not a plan's.
func (b *builder) own(row [maxColumns]Number) entry {
	if e, ok := b.rows[row]; ok {
		return e
	}
	t := b.table
	e := ownRow | entry(len(t.own)/len(t.columns)) //nolint:gosec // at most MaxCallers
	t.own = append(t.own, row[:len(t.columns)]...)
	if len(b.rows) < maxSharedRows {
		b.rows[row] = e
	}
	return e
}

// row reads a number for each column.
func (b *builder) row(words [][]byte) (row [maxColumns]Number, err error) {
	if n := len(b.table.columns); len(words) != n {
		return row, fmt.Errorf("%d numbers are here, the table has %d columns", len(words), n)
	}
	for i, w := range words {
		if row[i], err = number(w); err != nil {
			return row, fmt.Errorf("%s: %w", b.table.columns[i], err)
		}
	}
	return row, nil
}

// number reads requests, or requests:burst.
func number(word []byte) (n Number, err error) {
	requests, burst, both := bytes.Cut(word, []byte(":"))
	if n.Requests, err = count(requests); err != nil || !both {
		return n, err
	}
	if n.Burst, err = count(burst); err == nil && (n.Burst == 0 || n.Burst > n.Requests) {
		err = fmt.Errorf("the burst %d is not between 1 and the requests, %d", n.Burst, n.Requests)
	}
	return n, err
}

func count(word []byte) (uint32, error) {
	n, err := strconv.ParseUint(string(word), 10, 32)
	switch {
	case err == nil:
		return uint32(n), nil
	case errors.Is(err, strconv.ErrRange):
		return 0, fmt.Errorf("%s is above 4294967295", quoted(word))
	case len(word) > 0 && word[0] == '-':
		return 0, fmt.Errorf("%s is below 0", quoted(word))
	}
	return 0, fmt.Errorf("%s is not a number, nor two with a colon, requests:burst", quoted(word))
}
