package main

import (
	"os"
	"slices"
	"testing"
	"time"
)

func TestCalmest(t *testing.T) {
	const ms = time.Millisecond
	took, stolen := calmest([]spell{
		{took: []time.Duration{9 * ms}, stolen: 40 * ms},
		{took: []time.Duration{3 * ms, 1 * ms}, stolen: 10 * ms},
		{took: []time.Duration{8 * ms}, stolen: 30 * ms},
		{took: []time.Duration{2 * ms}},
	})
	if want := []time.Duration{1 * ms, 2 * ms, 3 * ms}; !slices.Equal(took, want) || stolen != 10*ms {
		t.Errorf("%v, %s", took, stolen)
	}
	if took, stolen := calmest(nil); took != nil || stolen != 0 {
		t.Errorf("%v, %s", took, stolen)
	}
}

func TestLonger(t *testing.T) {
	got := longer([]spell{{took: []time.Duration{1}, stolen: 5}, {took: []time.Duration{2, 3}, stolen: 6}, {took: []time.Duration{4}}}, 2)
	if len(got) != 1 || !slices.Equal(got[0].took, []time.Duration{1, 2, 3}) || got[0].stolen != 11 {
		t.Errorf("%+v", got)
	}
}

func TestHostLog(t *testing.T) {
	begin := time.Now()
	at := func(s int) time.Time { return begin.Add(time.Duration(s) * time.Second) }
	log := hostLog{at: []time.Time{at(0), at(1), at(2)}, stolen: []time.Duration{5, 7, 20}}
	for _, tc := range []struct {
		from, to time.Time
		want     time.Duration
	}{
		{at(0), at(1), 2}, {at(1), at(2), 13}, {at(-1), at(9), 15}, {at(2), at(3), 0},
	} {
		if got := log.between(tc.from, tc.to); got != tc.want {
			t.Errorf("%s to %s: %d, want %d", tc.from.Sub(begin), tc.to.Sub(begin), got, tc.want)
		}
	}
	if got := (hostLog{}).between(at(0), at(1)); got != 0 {
		t.Error(got)
	}
}

func TestParseStolen(t *testing.T) {
	if got, err := parseStolen([]byte("cpu  1 2 3 4 5 6 7 250 9 0\ncpu0 1 1 1\n")); err != nil || got != 2500*time.Millisecond {
		t.Errorf("%s, %v", got, err)
	}
	for _, bad := range []string{"", "cpu0 1 2 3 4 5 6 7 8 9", "cpu 1 2 3", "cpu 1 2 3 4 5 6 7 x"} {
		if got, err := parseStolen([]byte(bad)); err == nil {
			t.Errorf("%q: %s", bad, got)
		}
	}
	data, err := os.ReadFile("/proc/stat")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := parseStolen(data); err != nil {
		t.Errorf("this kernel's: %v", err)
	}
}
