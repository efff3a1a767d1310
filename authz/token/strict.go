package token

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"unicode/utf8"
)

// maxDepth bounds how deep objects and lists may nest.
const maxDepth = 64

// strictObject accepts exactly one JSON object in UTF-8 in which, at every
// depth, no name is there twice.
func strictObject(b []byte) error {
	if !utf8.Valid(b) {
		return errors.New("it is not UTF-8")
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	t, err := d.Token()
	if err != nil || t != json.Delim('{') {
		return errors.New("it is not a JSON object")
	}
	if err := strictMembers(d, 1); err != nil {
		return err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("something follows the JSON object")
	}
	return nil
}

func strictMembers(d *json.Decoder, depth int) error {
	if depth > maxDepth {
		return errors.New("it nests too deep")
	}
	seen := make(map[string]bool)
	for d.More() {
		t, err := d.Token()
		if err != nil {
			return errors.New("it is not JSON")
		}
		name, _ := t.(string)
		if seen[name] {
			return fmt.Errorf("%q is there twice", clip(name))
		}
		seen[name] = true
		if err := strictValue(d, depth); err != nil {
			return err
		}
	}
	_, err := d.Token()
	return err
}

func strictValue(d *json.Decoder, depth int) error {
	t, err := d.Token()
	if err != nil {
		return errors.New("it is not JSON")
	}
	switch t {
	case json.Delim('{'):
		return strictMembers(d, depth+1)
	case json.Delim('['):
		if depth >= maxDepth {
			return errors.New("it nests too deep")
		}
		for d.More() {
			if err := strictValue(d, depth+1); err != nil {
				return err
			}
		}
		_, err := d.Token()
		return err
	}
	return nil
}
