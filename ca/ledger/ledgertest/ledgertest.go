// Package ledgertest holds every ledger.Store to what the interface promises, and has
// one in memory.
package ledgertest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/transparency-dev/merkle/proof"
	"github.com/transparency-dev/merkle/rfc6962"

	"github.com/writ-mesh/writ/ca/ledger"
	"github.com/writ-mesh/writ/ca/ledger/hashtree"
)

var day = time.Date(2026, 11, 21, 10, 0, 0, 123456789, time.UTC)

// Certificate makes the entry of the n-th certificate.
func Certificate(n int) ledger.Entry {
	return ledger.Entry{
		Kind: ledger.Issued, Time: day.Add(time.Duration(n) * time.Millisecond), Actor: "spiffe://example.org/writ/node/n1",
		Request: "issue", Subject: fmt.Sprintf("spiffe://example.org/ns/default/sa/w%d", n%7),
		Serial: fmt.Sprintf("%032x", n), Authority: fmt.Sprintf("%040x", 1), NotBefore: day, NotAfter: day.Add(time.Hour),
		SHA256: fmt.Sprintf("%064x", n), Facts: []string{"unix:uid:1000"},
	}
}

// Issue is the change of the n-th certificate.
func Issue(n int) ledger.Change { return ledger.Change{Entry: Certificate(n)} }

// Put is a change that puts a document that was not there.
func Put(key, value string) ledger.Change {
	return ledger.Change{
		If:    map[string]uint64{key: 0},
		Entry: ledger.Entry{Kind: ledger.TokenMade, Time: day, Subject: key}, Put: map[string][]byte{key: []byte(value)},
	}
}

// Use is a change that deletes a document, which has the version, for a
// certificate.
func Use(key string, version uint64, n int) ledger.Change {
	return ledger.Change{If: map[string]uint64{key: version}, Entry: Certificate(n), Delete: []string{key}}
}

// All returns the entries of a store in their order.
func All(t testing.TB, s ledger.Log) []ledger.Entry {
	t.Helper()
	var out []ledger.Entry
	err := s.Each(t.Context(), 0, func(r ledger.Record) error {
		e, err := r.Entry()
		if r.Index != uint64(len(out)) {
			t.Errorf("entry %d comes after %d others", r.Index, len(out))
		}
		out = append(out, e)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// suite is a store under test.
type suite struct {
	*testing.T
	ledger.Store
	reopen func(t *testing.T, s ledger.Store) ledger.Store
}

// Run runs the suite. open gives a new empty store; reopen closes it and opens it
// again, and is nil for a store that keeps nothing.
func Run(t *testing.T, open func(t *testing.T) ledger.Store, reopen func(t *testing.T, s ledger.Store) ledger.Store) {
	for name, test := range map[string]func(*suite){
		"order": testOrder, "concurrent": testConcurrent, "from": testFrom, "stop": testStop, "bad changes": testBad,
		"documents": testDocuments, "one document for many": testRace, "chain of versions": testChain,
		"proofs": testProofs, "watch": testWatch, "watch ends": testWatchEnds, "check": testCheck,
	} {
		t.Run(name, func(t *testing.T) {
			s := &suite{t, open(t), reopen}
			defer func() {
				if err := s.Close(); err != nil {
					t.Error(err)
				}
			}()
			test(s)
		})
	}
}

// again closes the store and opens it again, if it keeps anything.
func (s *suite) again() {
	s.Helper()
	if s.reopen != nil {
		s.Store = s.reopen(s.T, s.Store)
	}
}

func (s *suite) commit(c ledger.Change) uint64 {
	s.Helper()
	v, err := s.Commit(s.Context(), c)
	if err != nil {
		s.Fatal(err)
	}
	return v
}

func (s *suite) head() ledger.Head {
	s.Helper()
	h, err := s.Head(s.Context())
	if err != nil {
		s.Fatal(err)
	}
	return h
}

func testOrder(s *suite) {
	if h := s.head(); h.Size != 0 || [32]byte(rfc6962.DefaultHasher.EmptyRoot()) != h.Root {
		s.Fatalf("an empty log has head %+v", h)
	}
	for n := range 20 {
		if v := s.commit(Issue(n)); v != uint64(n)+1 {
			s.Fatalf("change %d has version %d", n, v)
		}
	}
	before := s.head()
	s.again()
	if after := s.head(); before != after || after.Size != 20 {
		s.Fatalf("the log was %+v and is %+v", before, after)
	}
	got := All(s, s)
	if len(got) != 20 {
		s.Fatalf("got %d entries, want 20", len(got))
	}
	for n, e := range got {
		if !reflect.DeepEqual(e, Certificate(n)) {
			s.Fatalf("entry %d: got %+v, want %+v", n, e, Certificate(n))
		}
	}
}

func testConcurrent(s *suite) {
	const workers, each = 16, 25
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			for n := range each {
				if _, err := s.Commit(s.Context(), Issue(w*each+n)); err != nil {
					s.Errorf("commit: %v", err)
				}
				// Reading goes on while others write.
				if n == each/2 {
					All(s, s)
				}
			}
		})
	}
	wg.Wait()
	s.again()
	seen := make(map[string]int)
	for _, e := range All(s, s) {
		seen[e.Serial]++
	}
	for n := range workers * each {
		if seen[Certificate(n).Serial] != 1 {
			s.Fatalf("certificate %d is recorded %d times", n, seen[Certificate(n).Serial])
		}
	}
	s.verify()
}

// verify computes the root from the leaves.
func (s *suite) verify() {
	s.Helper()
	var tree hashtree.Tree
	err := s.Each(s.Context(), 0, func(r ledger.Record) (err error) {
		tree, err = tree.Grown(hashtree.Hash(r.Leaf))
		return err
	})
	if err != nil {
		s.Fatal(err)
	}
	if want, err := tree.Head(); err != nil || want != s.head() {
		s.Fatalf("the store says %+v, its entries %+v (%v)", s.head(), want, err)
	}
}

func testFrom(s *suite) {
	const count = 600 // more than a store keeps together
	var wg sync.WaitGroup
	for w := range 20 {
		wg.Go(func() {
			for n := w; n < count; n += 20 {
				if _, err := s.Commit(s.Context(), Issue(n)); err != nil {
					s.Error(err)
				}
			}
		})
	}
	wg.Wait()
	for range 2 {
		for _, from := range []uint64{0, 1, 255, 256, 257, 512, count - 1, count, count + 1} {
			next := from
			err := s.Each(s.Context(), from, func(r ledger.Record) error {
				if r.Index != next {
					s.Fatalf("from %d: entry %d comes where %d should", from, r.Index, next)
				}
				next++
				return nil
			})
			if err != nil || next != max(from, count) {
				s.Fatalf("from %d: ended at %d, %v", from, next, err)
			}
		}
		s.again()
	}
}

func testStop(s *suite) {
	for n := range 3 {
		s.commit(Issue(n))
	}
	enough := errors.New("enough")
	calls := 0
	err := s.Each(s.Context(), 0, func(ledger.Record) error { calls++; return enough })
	if !errors.Is(err, enough) || calls != 1 {
		s.Fatalf("got %v after %d calls", err, calls)
	}
}

func testBad(s *suite) {
	long := make([]byte, 600)
	for i := range long {
		long[i] = 'x'
	}
	entry := Certificate(1)
	for name, c := range map[string]ledger.Change{
		"no entry":        {},
		"empty key":       {Entry: entry, Put: map[string][]byte{"": {1}}},
		"key with a line": {Entry: entry, Delete: []string{"a\nb"}},
		"long key":        {Entry: entry, Delete: []string{string(long)}},
		"no value":        {Entry: entry, Put: map[string][]byte{"a": nil}},
		"large value":     {Entry: entry, Put: map[string][]byte{"a": make([]byte, 300<<10)}},
		"both":            {Entry: entry, Put: map[string][]byte{"a": {1}}, Delete: []string{"a"}},
		"large entry":     {Entry: ledger.Entry{Kind: ledger.Issued, Actor: string(make([]byte, 20<<10))}},
	} {
		if _, err := s.Commit(s.Context(), c); err == nil || errors.Is(err, ledger.ErrConflict) || errors.Is(err, ledger.ErrUnavailable) {
			s.Errorf("%s: got %v", name, err)
		}
	}
	if h := s.head(); h.Size != 0 {
		s.Errorf("%d bad changes were made", h.Size)
	}
	s.commit(ledger.Change{Entry: entry, Put: map[string][]byte{"a": make([]byte, 250<<10), "empty": {}}})
	s.again()
	if d, err := s.Get(s.Context(), "a"); err != nil || len(d.Value) != 250<<10 {
		s.Errorf("the largest document: %d bytes, %v", len(d.Value), err)
	}
	if d, err := s.Get(s.Context(), "empty"); err != nil || d.Value == nil || len(d.Value) > 0 {
		s.Errorf("an empty document: %v, %v", d, err)
	}
}

func testDocuments(s *suite) {
	ctx := s.Context()
	if _, err := s.Get(ctx, "a/1"); !errors.Is(err, ledger.ErrNoDocument) {
		s.Fatalf("got %v", err)
	}
	first := s.commit(Put("a/1", "one"))
	s.commit(Put("a/2", "two"))
	s.commit(Put("b/1", "\x00\xff\n\t"))
	s.again()
	s.is("a/1", "one", first)
	s.is("b/1", "\x00\xff\n\t", 3)
	// In one entry: one replaced, one deleted, one new.
	v := s.commit(ledger.Change{
		If: map[string]uint64{"a/1": first, "a/2": 2, "a/3": 0}, Entry: Certificate(1),
		Put: map[string][]byte{"a/1": []byte("new"), "a/3": []byte("three")}, Delete: []string{"a/2"},
	})
	for range 2 {
		s.is("a/1", "new", v)
		docs, err := s.List(ctx, "a/")
		if err != nil || len(docs) != 2 || docs[0].Key != "a/1" || docs[1].Key != "a/3" || string(docs[1].Value) != "three" {
			s.Fatalf("got %+v, %v", docs, err)
		}
		if docs, err := s.List(ctx, "c"); err != nil || len(docs) > 0 {
			s.Fatalf("got %+v, %v", docs, err)
		}
		s.again()
	}
	entries := All(s, s)
	got := slices.Sorted(maps.Keys(entries[3].Documents))
	if !slices.Equal(got, []string{"a/1", "a/2", "a/3"}) || entries[3].Documents["a/2"] != "" || len(entries[3].Documents["a/1"]) != 64 {
		s.Fatalf("the entry names %v", entries[3].Documents)
	}
	// What no longer holds, alone or beside what does.
	for name, c := range map[string]ledger.Change{
		"put of an old version":    {If: map[string]uint64{"a/1": first}, Entry: Certificate(2), Put: map[string][]byte{"a/1": []byte("x")}},
		"put of what is there":     Put("a/3", "x"),
		"deletion of what is gone": Use("a/2", 2, 2),
		"one of two":               {If: map[string]uint64{"a/1": v, "a/2": 7}, Entry: Certificate(2), Put: map[string][]byte{"a/1": []byte("x")}},
		"without a document":       {If: map[string]uint64{"a/1": first}, Entry: Certificate(2)},
	} {
		if _, err := s.Commit(ctx, c); !errors.Is(err, ledger.ErrConflict) {
			s.Errorf("%s: got %v", name, err)
		}
	}
	s.is("a/1", "new", v)
	// Without a precondition, and with one about another document.
	s.commit(ledger.Change{If: map[string]uint64{"a/1": v}, Entry: Certificate(2), Put: map[string][]byte{"c": []byte("x")}, Delete: []string{"nothing"}})
	s.is("c", "x", v+1)
	if h := s.head(); h.Size != v+1 {
		s.Errorf("%d entries, want %d", h.Size, v+1)
	}
	s.verify()
}

func (s *suite) is(key, value string, version uint64) {
	s.Helper()
	d, err := s.Get(s.Context(), key)
	if err != nil || d.Key != key || string(d.Value) != value || d.Version != version {
		s.Fatalf("%s: got %+v, %v; want %q, version %d", key, d, err, value, version)
	}
}

func testRace(s *suite) {
	const racers = 16
	v := s.commit(Put("tokens/1", "secret"))
	errs := make(chan error, racers)
	begin := make(chan struct{})
	for n := range racers {
		go func() {
			<-begin
			_, err := s.Commit(context.WithoutCancel(s.Context()), Use("tokens/1", v, n))
			errs <- err
		}()
	}
	close(begin)
	won := 0
	for range racers {
		switch err := <-errs; {
		case err == nil:
			won++
		case !errors.Is(err, ledger.ErrConflict):
			s.Errorf("a loser got %v", err)
		}
	}
	s.again()
	if n := len(All(s, s)); won != 1 || n != 2 {
		s.Fatalf("%d won, %d entries, want 1 and 2", won, n)
	}
	if _, err := s.Get(s.Context(), "tokens/1"); !errors.Is(err, ledger.ErrNoDocument) {
		s.Fatalf("the token is still there: %v", err)
	}
}

// testChain lets several add to one document, each on top of what he read.
func testChain(s *suite) {
	const workers, each = 8, 10
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			for done := 0; done < each; {
				d, err := s.Get(s.Context(), "counter")
				if err != nil && !errors.Is(err, ledger.ErrNoDocument) {
					s.Error(err)
					return
				}
				_, err = s.Commit(s.Context(), ledger.Change{
					If: map[string]uint64{"counter": d.Version}, Entry: Certificate(1),
					Put: map[string][]byte{"counter": append(slices.Clone(d.Value), 'x')},
				})
				switch {
				case err == nil:
					done++
				case !errors.Is(err, ledger.ErrConflict):
					s.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	s.again()
	if d, err := s.Get(s.Context(), "counter"); err != nil || len(d.Value) != workers*each {
		s.Fatalf("%d of %d additions are there: %v", len(d.Value), workers*each, err)
	}
}

func testProofs(s *suite) {
	const count = 530
	heads := []ledger.Head{s.head()}
	var leaves [][]byte
	for n := range count {
		s.commit(Issue(n))
		heads = append(heads, s.head())
	}
	s.again()
	ctx := s.Context()
	err := s.Each(ctx, 0, func(r ledger.Record) error { leaves = append(leaves, hashtree.Hash(r.Leaf)); return nil })
	if err != nil {
		s.Fatal(err)
	}
	for _, at := range []uint64{1, 2, 3, 7, 8, 255, 256, 257, 300, 511, 512, 513, 529, 530} {
		for _, index := range []uint64{0, 1, at / 2, at - 1} {
			if index >= at {
				continue
			}
			p, err := s.InclusionProof(ctx, index, at)
			if err != nil {
				s.Fatal(err)
			}
			if err := proof.VerifyInclusion(rfc6962.DefaultHasher, index, at, leaves[index], p, heads[at].Root[:]); err != nil {
				s.Fatalf("entry %d of %d: %v", index, at, err)
			}
			p, err = s.ConsistencyProof(ctx, index, at)
			if err != nil {
				s.Fatal(err)
			}
			if err := proof.VerifyConsistency(rfc6962.DefaultHasher, index, at, p, heads[index].Root[:], heads[at].Root[:]); err != nil {
				s.Fatalf("from %d to %d: %v", index, at, err)
			}
		}
	}
	for name, f := range map[string]func() error{
		"entry behind the size": func() error { _, err := s.InclusionProof(ctx, 3, 3); return err },
		"size behind the end":   func() error { _, err := s.InclusionProof(ctx, 3, count+1); return err },
		"backwards":             func() error { _, err := s.ConsistencyProof(ctx, 3, 2); return err },
		"behind the end":        func() error { _, err := s.ConsistencyProof(ctx, 3, count+1); return err },
	} {
		if err := f(); !errors.Is(err, ledger.ErrNoEntry) {
			s.Errorf("%s: got %v", name, err)
		}
	}
}

func testWatch(s *suite) {
	ctx, cancel := context.WithTimeout(s.Context(), 30*time.Second)
	defer cancel()
	s.commit(Put("w/a", "1"))
	s.commit(Put("x/a", "1"))
	updates := make(chan ledger.Update)
	ended := make(chan error, 1)
	go func() {
		ended <- s.Watch(ctx, "w/", func(u ledger.Update) error {
			select {
			case updates <- u:
			case <-ctx.Done():
			}
			return nil
		})
	}()
	first := <-updates
	if len(first.Put) != 1 || first.Put[0].Key != "w/a" || len(first.Deleted) > 0 {
		s.Fatalf("at first: %+v", first)
	}
	seen := map[string]string{"w/a": "1"}
	until := func(want map[string]string) {
		s.Helper()
		for !maps.Equal(seen, want) {
			select {
			case u := <-updates:
				for _, d := range u.Put {
					seen[d.Key] = string(d.Value)
				}
				for _, key := range u.Deleted {
					delete(seen, key)
				}
			case <-ctx.Done():
				s.Fatalf("seen %v, want %v", seen, want)
			}
		}
	}
	s.commit(Put("w/b", "1"))
	until(map[string]string{"w/a": "1", "w/b": "1"})
	// Nobody reads meanwhile, and of each only the last counts.
	for n := range 5 {
		s.commit(ledger.Change{Entry: Certificate(n), Put: map[string][]byte{"w/a": fmt.Append(nil, n), "x/a": {1}}})
	}
	s.commit(ledger.Change{Entry: Certificate(1), Delete: []string{"w/b"}})
	until(map[string]string{"w/a": "4"})
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		s.Fatalf("got %v", err)
	}
}

func testWatchEnds(s *suite) {
	enough := errors.New("enough")
	if err := s.Watch(s.Context(), "", func(u ledger.Update) error {
		if len(u.Put) > 0 {
			s.Errorf("got %+v", u)
		}
		return enough
	}); !errors.Is(err, enough) {
		s.Fatalf("got %v", err)
	}
}

func testCheck(s *suite) {
	if err := s.Check(s.Context()); err != nil {
		s.Fatal(err)
	}
	if h := s.head(); h.Size != 0 {
		s.Fatalf("a check left %d entries", h.Size)
	}
	s.commit(Issue(1))
	if err := s.Check(s.Context()); err != nil {
		s.Fatal(err)
	}
	s.again()
	if h := s.head(); h.Size != 1 {
		s.Fatalf("a check left %d entries", h.Size-1)
	}
}
