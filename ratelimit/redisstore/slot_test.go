package redisstore

import "testing"

// TestSlot: as CLUSTER KEYSLOT of a real Redis says.
func TestSlot(t *testing.T) {
	for key, want := range map[string]uint16{
		"123456789": 12739, "": 0, "foo": 12182, "{foo}.bar": 12182, "a{foo}{bar}": 12182, "{}foo": 9500, "foo{": 7673, "writ:{default/q}:0:s": 15836,
	} {
		if got := slot(key); got != want {
			t.Errorf("%q is in slot %d, want %d", key, got, want)
		}
	}
}
