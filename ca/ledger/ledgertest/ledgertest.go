// Package ledgertest holds every ledger.Store to what the interface promises, and has
// one in memory.
package ledgertest

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/writ-mesh/writ/ca/ledger"
)

var day = time.Date(2026, 11, 21, 10, 0, 0, 123456789, time.UTC)

// Certificate makes the record of the n-th certificate.
func Certificate(n int) ledger.Certificate {
	return ledger.Certificate{
		Serial:    fmt.Sprintf("%032x", n),
		SPIFFEID:  fmt.Sprintf("spiffe://example.org/ns/default/sa/w%d", n%7),
		Requester: "spiffe://example.org/writ/node/n1",
		NotBefore: day, NotAfter: day.Add(time.Hour), IssuedAt: day.Add(time.Duration(n) * time.Millisecond),
		SHA256: fmt.Sprintf("%064x", n),
	}
}

// Token makes the n-th token.
func Token(n int) ledger.Token {
	return ledger.Token{
		ID: fmt.Sprintf("%016x", n), Hash: []byte{byte(n), 2, 3}, SPIFFEID: "spiffe://example.org/writ/node/n1",
		Creator: "admin uid=0", CreatedAt: day, ExpiresAt: day.Add(10 * time.Minute),
	}
}

// All returns the certificates of a store in their order.
func All(t testing.TB, s ledger.Store) []ledger.Certificate {
	t.Helper()
	var out []ledger.Certificate
	err := s.Each(t.Context(), func(c ledger.Certificate) error {
		out = append(out, c)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// Run runs the suite. open gives a new empty store; reopen closes it and opens it
// again, and is nil for a store that keeps nothing.
func Run(t *testing.T, open func(t *testing.T) ledger.Store, reopen func(t *testing.T, s ledger.Store) ledger.Store) {
	t.Run("order", func(t *testing.T) { testOrder(t, open(t), reopen) })
	t.Run("concurrent", func(t *testing.T) { testConcurrent(t, open(t), reopen) })
	t.Run("stop", func(t *testing.T) { testStop(t, open(t)) })
	t.Run("token", func(t *testing.T) { testToken(t, open(t), reopen) })
	t.Run("race for a token", func(t *testing.T) { testRace(t, open(t), reopen) })
	t.Run("check", func(t *testing.T) {
		s := open(t)
		defer closing(t, s)
		if err := s.Check(t.Context()); err != nil {
			t.Fatal(err)
		}
		if n := len(All(t, s)); n != 0 {
			t.Fatalf("a check left %d records", n)
		}
	})
}

func testOrder(t *testing.T, s ledger.Store, reopen func(*testing.T, ledger.Store) ledger.Store) {
	for n := range 20 {
		if err := s.Record(t.Context(), Certificate(n)); err != nil {
			t.Fatal(err)
		}
	}
	if reopen != nil {
		s = reopen(t, s)
	}
	defer closing(t, s)
	got := All(t, s)
	if len(got) != 20 {
		t.Fatalf("got %d records, want 20", len(got))
	}
	for n, c := range got {
		if c != Certificate(n) {
			t.Fatalf("record %d: got %+v, want %+v", n, c, Certificate(n))
		}
	}
}

func testConcurrent(t *testing.T, s ledger.Store, reopen func(*testing.T, ledger.Store) ledger.Store) {
	const workers, each = 16, 25
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			for n := range each {
				if err := s.Record(t.Context(), Certificate(w*each+n)); err != nil {
					t.Errorf("record: %v", err)
				}
				// Reading goes on while others write.
				if n == each/2 {
					All(t, s)
				}
			}
		})
	}
	wg.Wait()
	if reopen != nil {
		s = reopen(t, s)
	}
	defer closing(t, s)
	seen := make(map[ledger.Certificate]int)
	for _, c := range All(t, s) {
		seen[c]++
	}
	for n := range workers * each {
		if seen[Certificate(n)] != 1 {
			t.Fatalf("certificate %d is recorded %d times", n, seen[Certificate(n)])
		}
	}
}

func testStop(t *testing.T, s ledger.Store) {
	defer closing(t, s)
	for n := range 3 {
		if err := s.Record(t.Context(), Certificate(n)); err != nil {
			t.Fatal(err)
		}
	}
	enough := errors.New("enough")
	calls := 0
	err := s.Each(t.Context(), func(ledger.Certificate) error { calls++; return enough })
	if !errors.Is(err, enough) || calls != 1 {
		t.Fatalf("got %v after %d calls", err, calls)
	}
}

func testToken(t *testing.T, s ledger.Store, reopen func(*testing.T, ledger.Store) ledger.Store) {
	again := func() {
		if reopen != nil {
			s = reopen(t, s)
		}
	}
	defer func() { closing(t, s) }()
	if _, err := s.Token(t.Context(), Token(1).ID); !errors.Is(err, ledger.ErrNoToken) {
		t.Fatalf("unknown token: got %v", err)
	}
	for n := range 3 {
		if err := s.AddToken(t.Context(), Token(n)); err != nil {
			t.Fatal(err)
		}
	}
	again()
	got, err := s.Token(t.Context(), Token(1).ID)
	if err != nil || fmt.Sprint(got) != fmt.Sprint(Token(1)) {
		t.Fatalf("got %+v, %v", got, err)
	}
	if err := s.RecordJoin(t.Context(), Token(1).ID, Certificate(1)); err != nil {
		t.Fatal(err)
	}
	again()
	if _, err := s.Token(t.Context(), Token(1).ID); !errors.Is(err, ledger.ErrNoToken) {
		t.Fatalf("used token: got %v", err)
	}
	if err := s.RecordJoin(t.Context(), Token(1).ID, Certificate(2)); !errors.Is(err, ledger.ErrNoToken) {
		t.Fatalf("token used twice: got %v", err)
	}
	if certs := All(t, s); len(certs) != 1 || certs[0] != Certificate(1) {
		t.Fatalf("got %+v", certs)
	}
	if _, err := s.Token(t.Context(), Token(2).ID); err != nil {
		t.Fatalf("another token was used up too: %v", err)
	}
}

func testRace(t *testing.T, s ledger.Store, reopen func(*testing.T, ledger.Store) ledger.Store) {
	const racers = 16
	if err := s.AddToken(t.Context(), Token(1)); err != nil {
		t.Fatal(err)
	}
	errs := make(chan error, racers)
	begin := make(chan struct{})
	for n := range racers {
		go func() {
			<-begin
			errs <- s.RecordJoin(context.WithoutCancel(t.Context()), Token(1).ID, Certificate(n))
		}()
	}
	close(begin)
	won := 0
	for range racers {
		switch err := <-errs; {
		case err == nil:
			won++
		case !errors.Is(err, ledger.ErrNoToken):
			t.Errorf("a loser got %v", err)
		}
	}
	if reopen != nil {
		s = reopen(t, s)
	}
	defer closing(t, s)
	if n := len(All(t, s)); won != 1 || n != 1 {
		t.Fatalf("%d won, %d certificates recorded, want one", won, n)
	}
}

func closing(t *testing.T, s ledger.Store) {
	t.Helper()
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}
