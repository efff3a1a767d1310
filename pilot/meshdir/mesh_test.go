package meshdir

import (
	"os"
	"testing"
)

func TestPrint(t *testing.T) {
	files, _, err := ReadDir("testdata/mesh")
	if err != nil {
		t.Fatal(err)
	}
	_, problems := Parse(files, nil, Options{})
	for _, p := range problems {
		t.Log(p)
	}
	_ = os.Stdout
}
