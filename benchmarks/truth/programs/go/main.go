// A program that the preload library cannot see: Go asks the kernel without libc.
package main

import (
	"fmt"
	"os"
)

func main() {
	if err := os.WriteFile("written-by-go", []byte("x\n"), 0o644); err != nil {
		panic(err)
	}
	data, err := os.ReadFile("written-by-go")
	fmt.Println(len(data), err)
}
