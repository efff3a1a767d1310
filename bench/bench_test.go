package main

import (
	"bytes"
	"os"
	"strings"
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
