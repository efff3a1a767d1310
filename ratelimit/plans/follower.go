package plans

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/writ-mesh/writ/ratelimit/redisstore"
)

const (
	// maxStrange is how many callers may have something in Redis that is no plan; with
	// more the table is refused.
	maxStrange = 500
	// maxGone is how many times maxPlans there may be plans, those that are gone included,
	// before the table is read anew without them.
	maxGone = 4
	// maxTold is how many times as many callers as a table has may be read of it: Redis
	// tells some twice while a hash grows, and a malicious one would go on for ever.
	maxTold = 4
	// maxOdd is after how many looks in a row that find another number of callers than
	// the changes explain the table is read anew.
	maxOdd = 5
	// maxTorn is how often in a row a table is not taken that has another number of callers
	// than Redis says: one whose writer says nothing in the stream could be so for ever.
	maxTorn = 3
)

// follower follows a table of Redis. Only its own goroutine uses it.
type follower struct {
	book   *Book
	handle *Handle
	from   *redisstore.Plans

	head string // as it was read
	last string // place in the changes
	// strange are callers that have something that is no plan. What they had before
	// stays. They are looked at again until they have one.
	strange map[string]error
	odd     int
	// stale: more was changed than is known, all has to be read. It was last at read.
	stale bool
	read  time.Time
	// whole: the table was read since the start. torn is how often in a row it was read
	// with another number of callers than Redis has.
	whole bool
	torn  int
}

// look takes in what has changed.
func (f *follower) look(ctx context.Context) {
	err := f.follow(ctx)
	switch {
	case ctx.Err() != nil, errors.Is(err, errSoon):
	case err != nil:
		f.book.fail(f.handle, err)
	default:
		f.book.fine(f.handle)
	}
}

func (f *follower) follow(ctx context.Context) error {
	if !f.whole {
		return f.readAll(ctx)
	}
	for {
		s, err := f.from.State(ctx, f.handle.name, f.last)
		if err != nil {
			return fmt.Errorf("redis: %w", err)
		}
		if s.Head == "" {
			return f.missing()
		}
		again, wrong := f.takeHead(s.Head)
		if !again {
			if err := f.take(ctx, s.Changed); err != nil {
				return errors.Join(wrong, err)
			}
			f.last = s.Last
		}
		f.stale = f.stale || again || s.Gap || f.oddly(s)
		switch {
		case f.stale:
			return errors.Join(wrong, f.readAll(ctx))
		case !s.More:
			return errors.Join(wrong, f.strangers())
		}
	}
}

func (f *follower) missing() error {
	return fmt.Errorf("redis has no text %s:head: there is no such table", redisstore.PlansKey(f.handle.name))
}

// takeHead takes in another head. again says that with it everything has to be read
// anew.
func (f *follower) takeHead(head string) (again bool, err error) {
	if head == f.head {
		return false, nil
	}
	b, err := parseHead(head, f.handle.name)
	if err != nil {
		return false, err
	}
	t, err := f.handle.table.Load().withHead(b.table)
	switch {
	case errors.Is(err, errReadAnew):
		return true, nil
	case err != nil:
		return false, err
	}
	f.head = head
	f.handle.table.Store(t)
	return false, nil
}

// take takes in what callers have now, all of them or none.
func (f *follower) take(ctx context.Context, callers []string) error {
	callers = slices.Compact(slices.Sorted(slices.Values(slices.Concat(callers, slices.Collect(maps.Keys(f.strange))))))
	if len(callers) == 0 {
		return nil
	}
	var values []any
	for part := range slices.Chunk(callers, maxStrange) {
		more, err := f.from.Get(ctx, f.handle.name, part)
		if err != nil {
			return fmt.Errorf("redis: %w", err)
		}
		values = append(values, more...)
	}
	t := f.handle.table.Load()
	b := newBuilder(f.book.options.MaxCallers)
	b.table = &Table{columns: t.columns, byName: t.byName, own: t.own}
	changes, strange := make(map[string]entry, len(callers)), map[string]error{}
	for i, caller := range callers {
		e, err := b.changed(caller, values[i])
		if err != nil {
			strange[caller] = err
			continue
		}
		changes[caller] = e
	}
	next := t.set(changes, b.table.own)
	switch {
	case len(strange) > maxStrange:
		return tooStrange(strange)
	case next.callers > b.max || len(next.base.text) > maxNames:
		return fmt.Errorf("redis: %w: a table has at most %d (plans.max_callers) with %d MiB of names", errTooMany, b.max, maxNames>>20)
	}
	f.strange = strange
	f.handle.table.Store(next)
	return nil
}

// tooStrange refuses a table in which too many callers have no plan, and names one.
func tooStrange(strange map[string]error) error {
	for caller, err := range strange {
		return fmt.Errorf("redis: more than %d callers have no plan, one of them: caller %s: %w", maxStrange, quoted([]byte(caller)), err)
	}
	return nil
}

// changed is what a caller has according to Redis.
func (b *builder) changed(caller string, value any) (entry, error) {
	text, there := value.(string)
	if !there {
		return nobody, nil
	}
	if err := checkCaller([]byte(caller)); err != nil {
		return nobody, err
	}
	return b.value(text)
}

// value reads what Redis has for a caller: what stands in a file behind its name.
func (b *builder) value(text string) (entry, error) {
	switch {
	case len(text) > maxLine:
		return nobody, fmt.Errorf("this has more than %d bytes", maxLine)
	case !utf8.ValidString(text):
		return nobody, errors.New("this is not UTF-8")
	}
	b.fields = split(b.fields[:0], []byte(text))
	return b.entryOf(b.fields)
}

// strangers is the first of the callers that have no plan.
func (f *follower) strangers() error {
	for _, caller := range slices.Sorted(maps.Keys(f.strange)) {
		return fmt.Errorf("redis: %d callers keep what they had, the first: caller %s: %w", len(f.strange), quoted([]byte(caller)), f.strange[caller])
	}
	return nil
}

// oddly says that for some looks now Redis has another number of callers than the
// changes explain: somebody changed callers and did not say so.
func (f *follower) oddly(s redisstore.PlansState) bool {
	if f.explained(f.handle.table.Load(), s) {
		f.odd = 0
		return false
	}
	f.odd++
	return f.odd >= maxOdd
}

// explained says whether Redis has the callers of a table, as many more or less as were
// changed while it was asked left aside.
func (f *follower) explained(t *Table, s redisstore.PlansState) bool {
	more := s.Callers - int64(t.callers)
	for caller := range f.strange {
		if t.entry(caller) == nobody {
			more--
		}
	}
	return s.More || max(more, -more) <= int64(len(s.Changed))
}

// errSoon: it is too early to read the whole table again.
var errSoon = errors.New("the table was read a moment ago")

// readAll reads the whole table.
func (f *follower) readAll(ctx context.Context) error {
	now := f.book.options.Now()
	if now.Sub(f.read) < f.book.readPause {
		return errSoon
	}
	f.read, f.odd = now, 0
	// Whatever changes from here on is among the changes.
	last, err := f.from.End(ctx, f.handle.name)
	if err != nil {
		return fmt.Errorf("redis: %w", err)
	}
	s, err := f.from.State(ctx, f.handle.name, last)
	switch {
	case err != nil:
		return fmt.Errorf("redis: %w", err)
	case s.Head == "":
		return f.missing()
	}
	b, err := parseHead(s.Head, f.handle.name)
	if err != nil {
		return err
	}
	b.again, b.max = true, f.book.options.MaxCallers
	b.table.base.reserve(int(min(s.Callers, int64(b.max))), 0)
	f.strange = map[string]error{}
	if err := f.scan(ctx, b); err != nil {
		return err
	}
	t, err := b.finish(f.handle.name, nil)
	if err != nil {
		return err
	}
	if err := f.checkWhole(ctx, t, last); err != nil {
		return err
	}
	f.head, f.last, f.stale, f.whole = s.Head, last, false, true
	f.handle.table.Store(t)
	f.book.options.Log.InfoContext(ctx, "plans in force", slog.String("table", f.handle.name), slog.Int("callers", t.callers))
	return f.strangers()
}

// errTorn: not all callers were read.
var errTorn = errors.New("redis has another number of callers than it told, was another server made the master meanwhile?")

// checkWhole refuses a table that was read in part: the place at which to go on reading
// means something else to a server that has become the master since the last answer. After
// some times it is taken as it is, and read again when that is odd.
func (f *follower) checkWhole(ctx context.Context, t *Table, since string) error {
	s, err := f.from.State(ctx, f.handle.name, since)
	switch {
	case err != nil:
		return fmt.Errorf("redis: %w", err)
	case f.explained(t, s) || f.torn >= maxTorn:
		f.torn = 0
		return nil
	}
	f.torn++
	return errTorn
}

// scan reads all callers.
func (f *follower) scan(ctx context.Context, b *builder) error {
	old := f.handle.table.Load()
	for from := uint64(0); ; {
		pairs, next, err := f.from.Scan(ctx, f.handle.name, from)
		if err != nil {
			return fmt.Errorf("redis: %w", err)
		}
		for i := 0; i+1 < len(pairs); i += 2 {
			if err := f.scanned(b, old, pairs[i], pairs[i+1]); err != nil {
				return err
			}
		}
		if from = next; from == 0 {
			return nil
		}
	}
}

// scanned takes a caller that was read. One that has no plan keeps what it had in the
// old table, if that can be said in the new one.
func (f *follower) scanned(b *builder, old *Table, caller, value string) error {
	if b.told++; b.told > maxTold*(b.max+maxStrange) {
		return fmt.Errorf("redis: %w: the same ones are told again and again", errTooMany)
	}
	err := checkCaller([]byte(caller))
	var e entry
	if err == nil {
		e, err = b.value(value)
	}
	if err == nil {
		return b.put([]byte(caller), e)
	}
	if f.strange[caller] = err; len(f.strange) > maxStrange {
		return tooStrange(f.strange)
	}
	if old == nil || !slices.Equal(old.columns, b.table.columns) {
		return nil
	}
	switch e := old.entry(caller); {
	case e == nobody:
	case e&ownRow != 0:
		var row [maxColumns]Number
		copy(row[:], old.own[int(e&^ownRow)*len(old.columns):][:len(old.columns)])
		return b.put([]byte(caller), b.own(row))
	default:
		if plan, ok := b.table.byName[old.plans[e]]; ok {
			return b.put([]byte(caller), plan)
		}
	}
	return nil
}

// errReadAnew: with another head callers have to be read anew.
var errReadAnew = errors.New("the table has other columns, or had too many plans")

// parseHead reads what is not about callers. The error names the line of the text.
func parseHead(text, name string) (*builder, error) {
	b := newBuilder(0)
	n := 0
	for line := range strings.Lines(text) {
		n++
		if len(line) > maxLine {
			return nil, fmt.Errorf("redis %s:head:%d: the line has more than %d bytes", redisstore.PlansKey(name), n, maxLine)
		}
		err := b.line([]byte(line))
		if b.table.base.len() > 0 {
			err = errors.New("callers are not in this text but in the hash beside it")
		}
		if err != nil {
			return nil, fmt.Errorf("redis %s:head:%d: %w", redisstore.PlansKey(name), n, err)
		}
	}
	if len(b.table.columns) == 0 {
		return nil, fmt.Errorf("redis %s:head: a table begins with its columns: %s requests", redisstore.PlansKey(name), wordNumbers)
	}
	return b, nil
}

// withHead gives the table with the plans and the default of another one. A plan that
// callers have cannot go.
func (t *Table) withHead(head *Table) (*Table, error) {
	if !slices.Equal(t.columns, head.columns) {
		return nil, errReadAnew
	}
	out := *t
	out.plans, out.planned, out.byName = slices.Clone(t.plans), slices.Clone(t.planned), make(map[string]entry, len(head.plans))
	n := len(t.columns)
	for i, name := range head.plans {
		row := head.planned[i*n:][:n]
		if e, ok := t.byName[name]; ok {
			copy(out.planned[int(e)*n:], row)
			out.byName[name] = e
			continue
		}
		out.byName[name] = entry(len(out.plans)) //nolint:gosec // at most a few thousand
		out.plans, out.planned = append(out.plans, name), append(out.planned, row...)
	}
	for name, e := range t.byName {
		if _, stays := out.byName[name]; stays {
			continue
		}
		if users := t.users(e); users > 0 {
			return nil, fmt.Errorf("redis: %d callers have the plan %s, which is not there any more", users, name)
		}
	}
	if len(out.plans) > maxGone*maxPlans {
		return nil, errReadAnew
	}
	if out.fallback = head.fallback; head.fallback != nobody && head.fallback != refused {
		out.fallback = out.byName[head.plans[head.fallback]]
	}
	return &out, nil
}
