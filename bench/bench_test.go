package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

func TestParseStat(t *testing.T) {
	const rest = " S 1 2 3 0 -1 4194560 100 0 0 0 250 50 7 8 20 0 9 0 12345 1000 200"
	for _, name := range []string{"writ-ca", "a b", ") x (", "1 2 3 4"} {
		got, err := parseStat([]byte("42 (" + name + ")" + rest))
		if err != nil || got != 3*time.Second {
			t.Errorf("program %q: %v, %v; want 3s", name, got, err)
		}
	}
	for _, bad := range []string{"", "42 (x) S 1", "42 (x) S 1 2 3 0 -1 4194560 100 0 0 0 x y 0"} {
		if _, err := parseStat([]byte(bad)); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
	data, err := os.ReadFile("/proc/self/stat")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := parseStat(data); err != nil {
		t.Errorf("this kernel's: %v", err)
	}
}

func TestMedian(t *testing.T) {
	for want, in := range map[int64][]int64{0: nil, 5: {5}, 2: {3, 1, 2}, 7: {9, 7}} {
		if got := median(in); got != want {
			t.Errorf("median of %v is %d, want %d", in, got, want)
		}
	}
}

func TestRow(t *testing.T) {
	var b bytes.Buffer
	row{name: "x", ours: 30 * time.Microsecond, floor: 20 * time.Microsecond, rate: 1000}.print(&b)
	row{name: "y", ours: 25 * time.Millisecond}.print(&b)
	for _, want := range []string{"30.0 us", "20.0 us", "1.50", "1000", "25 ms"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("%q is missing in %q", want, b.String())
		}
	}
}

func TestMedianRatio(t *testing.T) {
	got := medianRatio([]row{{ours: 30, floor: 10}, {ours: 10, floor: 10}, {ours: 44, floor: 20}, {ours: 100, floor: 10}, {ours: 15, floor: 10}})
	if got.ours != 44 || got.note != "1.00 to 10.00" {
		t.Errorf("%+v", got)
	}
}

func TestSelectRows(t *testing.T) {
	if got, err := selectRows("issuance,authz"); err != nil || len(got) != 2 || got[0].name != "issuance" {
		t.Errorf("%v, %v", got, err)
	}
	if _, err := selectRows("speed"); err == nil {
		t.Error("an unknown row was taken")
	}
}

func TestSignFloorSigns(t *testing.T) {
	if err := signFloor(10 * time.Millisecond); err != nil {
		t.Error(err)
	}
}

func TestMetric(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprint(w, "# HELP a_total x\na_total{operation=\"read\"} 3\na_total{operation=\"commit\"} 4.5\na_total_more 100\nb 1\n")
	}))
	defer srv.Close()
	at := strings.TrimPrefix(srv.URL, "http://")
	if got, err := metric(t.Context(), at, "a_total"); err != nil || got != 7.5 {
		t.Errorf("%v, %v; want 7.5", got, err)
	}
	if _, err := metric(t.Context(), at, "a_tot"); err == nil {
		t.Error("a metric that is not there was found")
	}
}

func TestParallel(t *testing.T) {
	var sum atomic.Int64
	if err := parallel(t.Context(), 100, 8, func(_ context.Context, i int) error { sum.Add(int64(i)); return nil }); err != nil || sum.Load() != 4950 {
		t.Errorf("%d, %v", sum.Load(), err)
	}
	bad := errors.New("bad")
	err := parallel(t.Context(), 1000, 8, func(ctx context.Context, i int) error {
		if i == 20 {
			return bad
		}
		return nil
	})
	if !errors.Is(err, bad) {
		t.Errorf("%v, want %v", err, bad)
	}
}

func TestLatencies(t *testing.T) {
	times := make([]time.Duration, 0, 200)
	for i := range 200 {
		times = append(times, time.Duration(200-i)*time.Millisecond)
	}
	if got := latencies("x", times).note; !strings.HasPrefix(got, "p50 101.0 ms, p99 199.0 ms, max 200.0 ms of 200") {
		t.Error(got)
	}
}

func TestPercentileOfBoth(t *testing.T) {
	t.Parallel()
	var some, others []time.Duration // 1 to 1000 and, a tenth as many, 10001 to 10100
	for i := range 1000 {
		others = append(others, time.Duration(i+1))
	}
	for i := range 100 {
		some = append(some, time.Duration(10_001+i))
	}
	for _, c := range []struct {
		share       float64
		thousandths int
		want        time.Duration
	}{
		{0, 990, 991},      // others alone
		{1, 990, 10_100},   // some alone
		{0.5, 990, 10_099}, // the upper half: 0.98 of it
		{0.005, 990, 995},  // 0.985 of 0.995 of what others take
		{0.02, 990, 10_051},
	} {
		if got := percentileOfBoth(some, others, c.share, c.thousandths); got < c.want-1 || got > c.want+1 {
			t.Errorf("with a share of %v: %d, want %d", c.share, got, c.want)
		}
	}
}
